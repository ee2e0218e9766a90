#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static FILE *results;

static const char *name_of(Kind kind) {
    switch (kind) {
    case REQUEST: return "request";
    case RUNTIME: return "runtime";
    case MODEL: return "model";
    case OUT_OF_MEMORY: return "out-of-memory";
    case DISK_FULL: return "disk-full";
    case TIMEOUT: return "timeout";
    case INTERNAL: break;
    }
    return "internal";
}

void keep_stdout(void) {
    results = fdopen(dup(STDOUT_FILENO), "w");
    if (results == NULL || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        _exit(INTERNAL);
}

FILE *answer(void) { return results; }

void fail(Kind kind, const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fprintf(results, "{\"schema_version\": 1, \"ok\": false, \"error\": {\"kind\": \"%s\", \"message\": ", name_of(kind));
    print_string(message);
    fputs("}}\n", results);
    fflush(results);
    _exit(kind);
}

static void too_long(int number) {
    static const char text[] = "{\"schema_version\": 1, \"ok\": false, \"error\": {\"kind\": \"timeout\", "
                               "\"message\": \"the run took longer than it may\"}}\n";
    (void)number;
    /* Nothing of the answer has been written yet: it is printed in one piece, at the very end. */
    if (write(fileno(results), text, sizeof text - 1) < 0)
        _exit(INTERNAL);
    _exit(TIMEOUT);
}

void limit_life(unsigned seconds) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGALRM, too_long);
    alarm(seconds);
}

void print_string(const char *text) {
    fputc('"', results);
    for (const unsigned char *letter = (const unsigned char *)text; *letter; letter++) {
        if (*letter == '"' || *letter == '\\')
            fprintf(results, "\\%c", *letter);
        else if (*letter < 0x20 || *letter > 0x7e)
            fprintf(results, "\\u%04x", *letter);
        else
            fputc(*letter, results);
    }
    fputc('"', results);
}

void print_numbers(const double *values, size_t count) {
    fputc('[', results);
    for (size_t i = 0; i < count; i++)
        fprintf(results, "%s%.6f", i ? ", " : "", values[i]);
    fputc(']', results);
}

double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static double kib_in(const char *path, const char *key) {
    FILE *stream = fopen(path, "r");
    if (stream == NULL)
        return -1;
    char line[256];
    size_t length = strlen(key);
    double found = -1;
    while (found < 0 && fgets(line, sizeof line, stream) != NULL)
        if (strncmp(line, key, length) == 0 && line[length] == ':')
            found = atof(line + length + 1) / 1024;
    fclose(stream);
    return found;
}

double status_mib(const char *key) { return kib_in("/proc/self/status", key); }

double pss_mib(void) { return kib_in("/proc/self/smaps_rollup", "Pss"); }

bool reset_peak(void) {
    FILE *stream = fopen("/proc/self/clear_refs", "w");
    if (stream == NULL)
        return false;
    bool written = fputs("5", stream) >= 0;
    written = fclose(stream) == 0 && written;
    double peak = status_mib("VmHWM"), now = status_mib("VmRSS");
    return written && peak >= 0 && now >= 0 && peak - now < 1;
}

void *need(size_t bytes) {
    void *found = calloc(1, bytes ? bytes : 1);
    if (found == NULL)
        fail(OUT_OF_MEMORY, "there is not enough memory: %zu bytes were asked for", bytes);
    return found;
}

FILE *open_file(const char *path, const char *mode) {
    FILE *stream = fopen(path, mode);
    if (stream == NULL)
        fail(errno == ENOSPC ? DISK_FULL : REQUEST, "%s: %s", path, strerror(errno));
    return stream;
}

void read_exactly(FILE *stream, void *data, size_t bytes, const char *path) {
    if (fread(data, 1, bytes, stream) != bytes)
        fail(REQUEST, "%s ends too early: it does not have the examples that were announced", path);
}

static _Noreturn void unwritten(const char *path) {
    fail(errno == ENOSPC || errno == EDQUOT ? DISK_FULL : INTERNAL, "%s: %s", path, strerror(errno));
}

void write_exactly(FILE *stream, const void *data, size_t bytes, const char *path) {
    if (fwrite(data, 1, bytes, stream) != bytes)
        unwritten(path);
}

void close_written(FILE *stream, const char *path) {
    if (fflush(stream) != 0 || fsync(fileno(stream)) != 0 || fclose(stream) != 0)
        unwritten(path);
}
