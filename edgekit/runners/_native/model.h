/* One signature of a model, compiled for the CPU, with a buffer for each of its inputs and outputs. */
#ifndef EDGEKIT_NATIVE_MODEL_H
#define EDGEKIT_NATIVE_MODEL_H

#include "litert.h"

/* What the caller says an input or output is: `float32:1x3x32x32:NAME`, and what the model has for it. */
typedef struct {
    const char *name;
    const char *element;
    Layout layout;
    size_t count;      /* values of one call */
    size_t bytes;      /* of one call, as the caller gives or takes them */
    size_t place;      /* among the signature's inputs or outputs */
    bool quantized;    /* whether the file has integers where the caller has floats */
    int stored;        /* the file's own element type */
    size_t stored_bytes;
    Quantization quantization;
    void *values;      /* one call's values, as the caller has them */
} Tensor;

typedef struct {
    const char *path;
    const char *signature; /* NULL: the only one */
    int threads;
    bool xnnpack;
    bool float_io;
    Tensor *inputs, *outputs;
    size_t input_count, output_count;
} ModelOptions;

typedef struct {
    LiteRt api;
    ModelOptions options;
    Handle environment, compiled;
    size_t signature;
    Handle *input_buffers, *output_buffers;
    size_t input_count, output_count;
} Model;

/* Reads `float32:1x3x32x32:NAME` (a scalar: `float32::NAME`), in place. */
void parse_tensor(char *text, Tensor *tensor);

/* Everything before the model's file is read. */
void model_start(Model *model, LiteRt api, ModelOptions options);

/* From the file to a model that is ready; every input and output must be what the caller says it is. */
void model_load(Model *model);

/* Hands the values of the inputs over; one inference; fetches the values of the outputs. */
void model_give(Model *model);
void model_run(Model *model);
void model_take(Model *model);

/* Whether delegates took over every operator. */
bool model_is_delegated(Model *model);

#endif
