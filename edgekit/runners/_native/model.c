#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

static const struct {
    const char *name;
    int code;
    size_t bytes;
} ELEMENTS[] = {
    {"float32", 1, 4}, {"int32", 2, 4},    {"uint8", 3, 1},    {"int64", 4, 8},   {"bool", 6, 1},    {"int16", 7, 2},
    {"int8", 9, 1},    {"float16", 10, 2}, {"float64", 11, 8}, {"uint64", 13, 8}, {"uint32", 16, 4}, {"uint16", 17, 2},
};
enum { FLOAT32 = 1, UINT8 = 3, INT16 = 7, INT8 = 9 };

static size_t element_by_name(const char *name) {
    for (size_t i = 0; i < sizeof ELEMENTS / sizeof *ELEMENTS; i++)
        if (strcmp(ELEMENTS[i].name, name) == 0)
            return i;
    fail(REQUEST, "there is no element type '%s'", name);
}

static const char *element_name(int code) {
    for (size_t i = 0; i < sizeof ELEMENTS / sizeof *ELEMENTS; i++)
        if (ELEMENTS[i].code == code)
            return ELEMENTS[i].name;
    return "a type that this program does not know";
}

void parse_tensor(char *text, Tensor *tensor) {
    char *shape = strchr(text, ':');
    char *name = shape == NULL ? NULL : strchr(shape + 1, ':');
    if (name == NULL)
        fail(REQUEST, "'%s' is not of the form TYPE:SHAPE:NAME", text);
    *shape++ = *name++ = '\0';
    tensor->name = name;
    tensor->element = text;
    tensor->count = 1;
    while (*shape) {
        char *end;
        long size = strtol(shape, &end, 10);
        if (end == shape || size < 0 || size > INT32_MAX || tensor->layout.rank == LITERT_MAX_RANK)
            fail(REQUEST, "the shape of '%s' is not one of at most %d sizes", name, LITERT_MAX_RANK);
        tensor->layout.dimensions[tensor->layout.rank++] = (int32_t)size;
        if (__builtin_mul_overflow(tensor->count, (size_t)size, &tensor->count))
            fail(REQUEST, "'%s' has more values than memory has room for", name);
        shape = *end == 'x' ? end + 1 : end;
    }
    if (__builtin_mul_overflow(tensor->count, ELEMENTS[element_by_name(text)].bytes, &tensor->bytes))
        fail(REQUEST, "'%s' has more values than memory has room for", name);
}

static void check(int status, Kind kind, const char *what) {
    if (status != 0)
        fail(kind, "LiteRT cannot %s (its status is %d)", what, status);
}

static void set_cpu(Model *model, Handle options) {
    /* The library reads these settings as a text; it frees nothing that it was not told how to free. */
    char *settings = need(64);
    snprintf(settings, 64, "kernel_mode = \"%s\"\nnum_threads = %d\n", model->options.xnnpack ? "xnnpack" : "builtin",
             model->options.threads);
    Handle opaque;
    check(model->api.SetOptionsHardwareAccelerators(options, LITERT_CPU), RUNTIME, "choose the CPU");
    check(model->api.CreateOpaqueOptions("xnnpack", settings, free, &opaque), RUNTIME, "take options of the CPU");
    check(model->api.AddOpaqueOptions(options, opaque), RUNTIME, "take options of the CPU");
}

void model_start(Model *model, LiteRt api, ModelOptions options) {
    *model = (Model){.api = api, .options = options};
    /* Without it the library looks for accelerators of its own on the whole system and loads what it finds. */
    Setting only_cpu = {LITERT_SETTING_ACCELERATORS, {LITERT_VALUE_INT, LITERT_CPU}};
    check(api.CreateEnvironment(1, &only_cpu, &model->environment), RUNTIME, "make an environment");
}

static Handle find_signature(Model *model, Handle file) {
    LiteRt *api = &model->api;
    size_t count;
    const char *wanted = model->options.signature, *key;
    check(api->GetNumModelSignatures(file, &count), MODEL, "count the model's signatures");
    if (wanted == NULL && count != 1)
        fail(MODEL, "the model has %zu signatures, and it is not said which one is meant", count);
    for (size_t i = 0; i < count; i++) {
        Handle signature;
        check(api->GetModelSignature(file, i, &signature), MODEL, "read a signature");
        check(api->GetSignatureKey(signature, &key), MODEL, "read a signature's name");
        if (wanted == NULL || strcmp(key, wanted) == 0) {
            model->signature = i;
            return signature;
        }
    }
    fail(MODEL, "the model has no signature '%s'", wanted);
}

static bool is_like(const Tensor *tensor, const TensorType *type) {
    if (type->layout.rank != tensor->layout.rank)
        return false;
    for (unsigned i = 0; i < type->layout.rank; i++)
        if (type->layout.dimensions[i] != tensor->layout.dimensions[i])
            return false;
    return true;
}

static bool takes_floats(Model *model, Handle tensor, Tensor *wanted, int element) {
    int kind;
    if (!model->options.float_io || strcmp(wanted->element, "float32") != 0)
        return false;
    if (element != INT8 && element != UINT8 && element != INT16)
        return false;
    if (model->api.GetQuantizationTypeId(tensor, &kind) != 0 || kind != LITERT_QUANTIZED_PER_TENSOR)
        return false;
    return model->api.GetPerTensorQuantization(tensor, &wanted->quantization) == 0;
}

static void describe(char *text, size_t size, const TensorType *type) {
    size_t used = (size_t)snprintf(text, size, "%s [", element_name(type->element));
    for (unsigned i = 0; i < type->layout.rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%d", i ? ", " : "", type->layout.dimensions[i]);
    if (used < size)
        snprintf(text + used, size - used, "]");
}

static void match(Model *model, Handle tensor, Tensor *wanted, TensorType *type, const char *side) {
    check(model->api.GetRankedTensorType(tensor, type), MODEL, "read a tensor's type: its rank may not be static");
    size_t element = element_by_name(wanted->element);
    wanted->stored = type->element;
    wanted->quantized = takes_floats(model, tensor, wanted, type->element);
    if (!is_like(wanted, type) || (!wanted->quantized && type->element != ELEMENTS[element].code)) {
        char found[160];
        describe(found, sizeof found, type);
        fail(MODEL, "the model's %s '%s' is %s, which is not what was announced: %s, %zu bytes", side, wanted->name, found,
             wanted->element, wanted->bytes);
    }
    wanted->stored_bytes = wanted->count * ELEMENTS[element_by_name(element_name(type->element))].bytes;
    wanted->values = need(wanted->bytes);
}

typedef struct {
    const char *side;
    int (*name)(Handle, size_t, const char **);
    int (*tensor)(Handle, size_t, Handle *);
    int (*requirements)(Handle, size_t, size_t, Handle *);
    Tensor *wanted;
    size_t wanted_count, count;
    Handle *buffers;
} Side;

static Tensor *wanted_as(Side *side, const char *name, const char *other) {
    for (size_t i = 0; i < side->wanted_count; i++)
        if (strcmp(side->wanted[i].name, name) == 0 || strcmp(side->wanted[i].name, other) == 0)
            return &side->wanted[i];
    fail(MODEL, "the model has the %s '%s', which was not announced", side->side, name);
}

static void make_buffers(Model *model, Handle signature, Side *side) {
    LiteRt *api = &model->api;
    if (side->count != side->wanted_count)
        fail(MODEL, "the model has %zu %ss, not %zu", side->count, side->side, side->wanted_count);
    side->buffers = need(side->count * sizeof(Handle));
    for (size_t i = 0; i < side->count; i++) {
        Handle tensor, requirements;
        TensorType type;
        const char *name, *other;
        check(side->name(signature, i, &name), MODEL, "read a name");
        check(side->tensor(signature, i, &tensor), MODEL, "find a tensor");
        check(api->GetTensorName(tensor, &other), MODEL, "read a tensor's name");
        Tensor *wanted = wanted_as(side, name, other);
        wanted->place = i;
        match(model, tensor, wanted, &type, side->side);
        check(side->requirements(model->compiled, model->signature, i, &requirements), MODEL, "say what a buffer needs");
        check(api->CreateManagedTensorBufferFromRequirements(model->environment, &type, requirements, &side->buffers[i]),
              OUT_OF_MEMORY, "make a buffer");
        size_t bytes;
        check(api->GetTensorBufferPackedSize(side->buffers[i], &bytes), MODEL, "tell a buffer's size");
        if (bytes != wanted->stored_bytes)
            fail(MODEL, "the buffer of '%s' has %zu bytes, not %zu", wanted->name, bytes, wanted->stored_bytes);
    }
}

void model_load(Model *model) {
    LiteRt *api = &model->api;
    Handle file, options;
    check(api->CreateModelFromFile(model->environment, model->options.path, &file), MODEL, "read the model");
    Handle signature = find_signature(model, file);
    check(api->CreateOptions(&options), RUNTIME, "make options");
    set_cpu(model, options);
    check(api->CreateCompiledModel(model->environment, file, options, &model->compiled), MODEL, "prepare the model");
    Side given = {"input", api->GetSignatureInputName, api->GetSignatureInputTensorByIndex,
                  api->GetCompiledModelInputBufferRequirements, model->options.inputs, model->options.input_count, 0, NULL};
    Side gives = {"output", api->GetSignatureOutputName, api->GetSignatureOutputTensorByIndex,
                  api->GetCompiledModelOutputBufferRequirements, model->options.outputs, model->options.output_count, 0, NULL};
    check(api->GetNumSignatureInputs(signature, &given.count), MODEL, "count the inputs");
    check(api->GetNumSignatureOutputs(signature, &gives.count), MODEL, "count the outputs");
    make_buffers(model, signature, &given);
    make_buffers(model, signature, &gives);
    model->input_buffers = given.buffers, model->input_count = given.count;
    model->output_buffers = gives.buffers, model->output_count = gives.count;
}

/* Rounds as numpy's rint does: to the nearest, halves to even. */
static void quantize(const Tensor *tensor, void *stored) {
    const float *values = tensor->values;
    long low = tensor->stored == UINT8 ? 0 : tensor->stored == INT8 ? -128 : -32768;
    long high = tensor->stored == UINT8 ? 255 : tensor->stored == INT8 ? 127 : 32767;
    for (size_t i = 0; i < tensor->count; i++) {
        float level = rintf(values[i] / tensor->quantization.scale) + (float)tensor->quantization.zero_point;
        long whole = level < (float)low ? low : level > (float)high ? high : level == level ? (long)level : 0;
        if (tensor->stored == UINT8)
            ((uint8_t *)stored)[i] = (uint8_t)whole;
        else if (tensor->stored == INT8)
            ((int8_t *)stored)[i] = (int8_t)whole;
        else
            ((int16_t *)stored)[i] = (int16_t)whole;
    }
}

static void dequantize(const Tensor *tensor, const void *stored) {
    float *values = tensor->values;
    for (size_t i = 0; i < tensor->count; i++) {
        float level = tensor->stored == UINT8  ? ((const uint8_t *)stored)[i]
                      : tensor->stored == INT8 ? ((const int8_t *)stored)[i]
                                               : ((const int16_t *)stored)[i];
        values[i] = (level - (float)tensor->quantization.zero_point) * tensor->quantization.scale;
    }
}

void model_give(Model *model) {
    for (size_t i = 0; i < model->input_count; i++) {
        const Tensor *tensor = &model->options.inputs[i];
        Handle buffer = model->input_buffers[tensor->place];
        void *address;
        check(model->api.LockTensorBuffer(buffer, &address, LITERT_LOCK_WRITE), INTERNAL, "open an input");
        if (tensor->quantized)
            quantize(tensor, address);
        else
            memcpy(address, tensor->values, tensor->bytes);
        check(model->api.UnlockTensorBuffer(buffer), INTERNAL, "close an input");
    }
}

void model_run(Model *model) {
    check(model->api.RunCompiledModel(model->compiled, model->signature, model->input_count, model->input_buffers,
                                      model->output_count, model->output_buffers),
          MODEL, "run the model");
}

void model_take(Model *model) {
    for (size_t i = 0; i < model->output_count; i++) {
        const Tensor *tensor = &model->options.outputs[i];
        Handle buffer = model->output_buffers[tensor->place];
        void *address;
        check(model->api.LockTensorBuffer(buffer, &address, LITERT_LOCK_READ), INTERNAL, "open an output");
        if (tensor->quantized)
            dequantize(tensor, address);
        else
            memcpy(tensor->values, address, tensor->bytes);
        check(model->api.UnlockTensorBuffer(buffer), INTERNAL, "close an output");
    }
}

bool model_is_delegated(Model *model) {
    bool fully = false;
    check(model->api.CompiledModelIsFullyAccelerated(model->compiled, &fully), INTERNAL, "tell what was delegated");
    return fully;
}
