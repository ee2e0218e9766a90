/* edgekit's native runner: one workload of one LiteRT model in one process. Prints one JSON document.
 *
 *     runner check   --library libLiteRt.so --release 2.3.0
 *     runner latency … --model FILE --data FILE --input TYPE:SHAPE:NAME… --output TYPE:SHAPE:NAME… --min-runs N …
 *     runner outputs … --calls N --out FILE
 *
 * The data's file holds the values of all calls one after the other: within a call the inputs in the order of their
 * `--input`. The outputs' file is made alike. */
#include <gnu/libc-version.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "support.h"

enum { MAX_TENSORS = 64, MAX_RUNS = 10000000 };

typedef struct {
    const char *library, *release, *data, *out;
    long warmup_runs, min_runs, max_runs, calls, time_limit;
    double min_seconds, max_seconds;
    ModelOptions model;
} Arguments;

typedef struct {
    double first, *warmup, *samples, pss;
    size_t warmups, count;
} Timings;

static long whole(const char *name, const char *text, long least, long most) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < least || value > most)
        fail(REQUEST, "%s takes a whole number from %ld to %ld, not '%s'", name, least, most, text);
    return value;
}

static double seconds(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value < 1e9))
        fail(REQUEST, "%s takes a number of seconds, not '%s'", name, text);
    return value;
}

static Tensor *next_tensor(Tensor *list, size_t *count) {
    if (*count == MAX_TENSORS)
        fail(REQUEST, "more than %d inputs or outputs are not taken", MAX_TENSORS);
    return &list[(*count)++];
}

static bool read_model_option(ModelOptions *model, const char *name, char *value) {
    if (strcmp(name, "--model") == 0)
        model->path = value;
    else if (strcmp(name, "--signature") == 0)
        model->signature = value;
    else if (strcmp(name, "--threads") == 0)
        model->threads = (int)whole(name, value, 1, 1024);
    else if (strcmp(name, "--xnnpack") == 0)
        model->xnnpack = whole(name, value, 0, 1) == 1;
    else if (strcmp(name, "--float-io") == 0)
        model->float_io = whole(name, value, 0, 1) == 1;
    else if (strcmp(name, "--input") == 0)
        parse_tensor(value, next_tensor(model->inputs, &model->input_count));
    else if (strcmp(name, "--output") == 0)
        parse_tensor(value, next_tensor(model->outputs, &model->output_count));
    else
        return false;
    return true;
}

static void read_option(Arguments *found, const char *name, char *value) {
    if (read_model_option(&found->model, name, value))
        return;
    if (strcmp(name, "--library") == 0)
        found->library = value;
    else if (strcmp(name, "--release") == 0)
        found->release = value;
    else if (strcmp(name, "--data") == 0)
        found->data = value;
    else if (strcmp(name, "--out") == 0)
        found->out = value;
    else if (strcmp(name, "--calls") == 0)
        found->calls = whole(name, value, 1, MAX_RUNS);
    else if (strcmp(name, "--warmup-runs") == 0)
        found->warmup_runs = whole(name, value, 0, MAX_RUNS);
    else if (strcmp(name, "--min-runs") == 0)
        found->min_runs = whole(name, value, 1, MAX_RUNS);
    else if (strcmp(name, "--max-runs") == 0)
        found->max_runs = whole(name, value, 1, MAX_RUNS);
    else if (strcmp(name, "--min-seconds") == 0)
        found->min_seconds = seconds(name, value);
    else if (strcmp(name, "--max-seconds") == 0)
        found->max_seconds = seconds(name, value);
    else if (strcmp(name, "--time-limit") == 0)
        found->time_limit = whole(name, value, 1, 10000000);
    else
        fail(REQUEST, "there is no option '%s'", name);
}

static Arguments read_arguments(int count, char **words) {
    Arguments found = {.warmup_runs = 1, .min_runs = 1, .max_runs = 1, .calls = 1, .time_limit = 600};
    found.model.threads = 1;
    found.model.xnnpack = true;
    found.model.inputs = need(MAX_TENSORS * sizeof(Tensor));
    found.model.outputs = need(MAX_TENSORS * sizeof(Tensor));
    for (int i = 2; i < count; i += 2) {
        if (i + 1 == count)
            fail(REQUEST, "%s needs a value", words[i]);
        read_option(&found, words[i], words[i + 1]);
    }
    if (found.library == NULL || found.release == NULL)
        fail(REQUEST, "--library and --release are needed");
    return found;
}

static double infer(Model *model) {
    double start = now_ms();
    model_run(model);
    return now_ms() - start;
}

static void read_call(Model *model, FILE *data, const char *path) {
    for (size_t i = 0; i < model->options.input_count; i++)
        read_exactly(data, model->options.inputs[i].values, model->options.inputs[i].bytes, path);
    model_give(model);
}

static Timings latency(Model *model, const Arguments *arguments, FILE *data) {
    Timings found = {.warmups = arguments->warmup_runs > 1 ? (size_t)arguments->warmup_runs - 1 : 0};
    found.warmup = need(found.warmups * sizeof(double));
    found.samples = need((size_t)arguments->max_runs * sizeof(double));
    read_call(model, data, arguments->data);
    found.first = infer(model);
    found.pss = pss_mib();
    for (size_t i = 0; i < found.warmups; i++)
        found.warmup[i] = infer(model);
    double begin = now_ms(), spent = 0;
    while (found.count < (size_t)arguments->max_runs) {
        found.samples[found.count++] = infer(model);
        spent = (now_ms() - begin) / 1e3;
        if (spent >= arguments->max_seconds)
            break;
        if (found.count >= (size_t)arguments->min_runs && spent >= arguments->min_seconds)
            break;
    }
    return found;
}

static Timings outputs(Model *model, const Arguments *arguments, FILE *data) {
    Timings found = {0};
    FILE *out = open_file(arguments->out, "wb");
    double told = now_ms();
    for (long call = 0; call < arguments->calls; call++) {
        read_call(model, data, arguments->data);
        double spent = infer(model);
        if (call == 0)
            found.first = spent, found.pss = pss_mib();
        model_take(model);
        for (size_t i = 0; i < model->options.output_count; i++)
            write_exactly(out, model->options.outputs[i].values, model->options.outputs[i].bytes, arguments->out);
        if (now_ms() - told > 1000) {
            told = now_ms();
            fprintf(stderr, "edgekit: %ld of %ld calls\n", call + 1, arguments->calls);
        }
    }
    close_written(out, arguments->out);
    return found;
}

static void print_memory(double baseline, double peak, double pss) {
    const char *names[] = {"peak_rss_mib", "peak_pss_mib", "runtime_baseline_mib", "model_delta_mib"};
    double values[] = {peak, pss, baseline, peak >= 0 && baseline >= 0 ? peak - baseline : -1};
    bool any = false;
    fputs(", \"memory\": {", answer());
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        if (values[i] < 0)
            continue;
        fprintf(answer(), "%s\"%s\": %.3f", any ? ", " : "", names[i], values[i]);
        any = true;
    }
    fputc('}', answer());
}

static void run(const char *mode, Arguments *arguments) {
    if (arguments->model.path == NULL || arguments->data == NULL)
        fail(REQUEST, "--model and --data are needed");
    bool timed = strcmp(mode, "latency") == 0;
    if (!timed && arguments->out == NULL)
        fail(REQUEST, "--out is needed");
    Model model;
    double start = now_ms();
    model_start(&model, litert_open(arguments->library, arguments->release), arguments->model);
    double init = now_ms() - start, baseline = status_mib("VmRSS");
    bool cleared = reset_peak();
    start = now_ms();
    model_load(&model);
    double load = now_ms() - start;
    FILE *data = open_file(arguments->data, "rb");
    Timings found = timed ? latency(&model, arguments, data) : outputs(&model, arguments, data);
    double peak = status_mib("VmHWM"), pss = pss_mib();
    fprintf(answer(), "{\"schema_version\": 1, \"ok\": true, \"init_ms\": %.6f, \"load_ms\": %.6f", init, load);
    fprintf(answer(), ", \"first_inference_ms\": %.6f, \"warmup_ms\": ", found.first);
    print_numbers(found.warmup, found.warmups);
    fputs(", \"samples_ms\": ", answer());
    print_numbers(found.samples, found.count);
    fprintf(answer(), ", \"calls\": %ld", timed ? 0 : arguments->calls);
    print_memory(baseline, peak, pss > found.pss ? pss : found.pss);
    fprintf(answer(), ", \"clear_refs\": %s, \"delegated\": %s}\n", cleared ? "true" : "false",
            model_is_delegated(&model) ? "true" : "false");
}

int main(int count, char **words) {
    keep_stdout();
    const char *mode = count > 1 ? words[1] : "";
    Arguments arguments = read_arguments(count, words);
    limit_life((unsigned)arguments.time_limit);
    if (strcmp(mode, "check") == 0) {
        litert_open(arguments.library, arguments.release);
        fprintf(answer(), "{\"schema_version\": 1, \"ok\": true, \"abi\": \"%s\", \"libc\": \"glibc %s\"}\n",
                LITERT_ABI_RELEASE, gnu_get_libc_version());
    } else if (strcmp(mode, "latency") == 0 || strcmp(mode, "outputs") == 0) {
        run(mode, &arguments);
    } else {
        fail(REQUEST, "there is no mode '%s': check, latency, outputs", mode);
    }
    if (fflush(answer()) != 0)
        return INTERNAL;
    /* Destructors of libraries may hang or crash; the work is done and nothing here needs them. */
    _Exit(0);
}
