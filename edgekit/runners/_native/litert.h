/* The part of libLiteRt's C API that the runner needs, found at run time: nothing is linked against the library.
 *
 * The functions have no version of their own and their arguments change between releases, so this header describes one
 * release family (LITERT_ABI_RELEASE) and `litert_open` refuses any library whose layout is another. */
#ifndef EDGEKIT_NATIVE_LITERT_H
#define EDGEKIT_NATIVE_LITERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LITERT_ABI_RELEASE "2.3"

enum {
    LITERT_MAX_RANK = 8,
    LITERT_CPU = 1,
    LITERT_LOCK_READ = 0,
    LITERT_LOCK_WRITE = 1,
    LITERT_QUANTIZED_PER_TENSOR = 1,
    LITERT_SETTING_ACCELERATORS = 24,
    LITERT_VALUE_INT = 2,
};

typedef struct Handle *Handle;

typedef struct {
    unsigned int rank : 7;
    bool has_strides : 1;
    int32_t dimensions[LITERT_MAX_RANK];
    uint32_t strides[LITERT_MAX_RANK];
} Layout;

typedef struct {
    int element;
    Layout layout;
} TensorType;

typedef struct {
    float scale;
    int64_t zero_point;
} Quantization;

typedef struct {
    int tag;
    struct {
        int type;
        int64_t number;
    } value;
} Setting;

_Static_assert(sizeof(Setting) == 24, "a setting of the library's environment has 24 bytes");
_Static_assert(sizeof(TensorType) == 72, "the library's tensor type has 72 bytes");
_Static_assert(sizeof(Quantization) == 16, "the library's quantization has 16 bytes");

/* F(name, arguments): each is `int LiteRt<name>(arguments)`, and 0 is success. */
#define LITERT_FUNCTIONS(F)                                                                       \
    F(CreateEnvironment, (int count, const Setting *settings, Handle *environment))                   \
    F(CreateOptions, (Handle * options))                                                          \
    F(SetOptionsHardwareAccelerators, (Handle options, int accelerators))                         \
    F(CreateOpaqueOptions, (const char *name, void *data, void (*release)(void *), Handle *made)) \
    F(AddOpaqueOptions, (Handle options, Handle opaque))                                          \
    F(CreateModelFromFile, (Handle environment, const char *path, Handle *model))                 \
    F(GetNumModelSignatures, (Handle model, size_t *count))                                       \
    F(GetModelSignature, (Handle model, size_t index, Handle *signature))                         \
    F(GetSignatureKey, (Handle signature, const char **key))                                      \
    F(GetNumSignatureInputs, (Handle signature, size_t *count))                                   \
    F(GetSignatureInputName, (Handle signature, size_t index, const char **name))                 \
    F(GetSignatureInputTensorByIndex, (Handle signature, size_t index, Handle *tensor))           \
    F(GetNumSignatureOutputs, (Handle signature, size_t *count))                                  \
    F(GetSignatureOutputName, (Handle signature, size_t index, const char **name))                \
    F(GetSignatureOutputTensorByIndex, (Handle signature, size_t index, Handle *tensor))          \
    F(GetTensorName, (Handle tensor, const char **name))                                          \
    F(GetRankedTensorType, (Handle tensor, TensorType * type))                                    \
    F(GetQuantizationTypeId, (Handle tensor, int *kind))                                          \
    F(GetPerTensorQuantization, (Handle tensor, Quantization * quantization))                     \
    F(CreateCompiledModel, (Handle environment, Handle model, Handle options, Handle *compiled))  \
    F(GetCompiledModelInputBufferRequirements,                                                    \
      (Handle compiled, size_t signature, size_t index, Handle *requirements))                    \
    F(GetCompiledModelOutputBufferRequirements,                                                   \
      (Handle compiled, size_t signature, size_t index, Handle *requirements))                    \
    F(CreateManagedTensorBufferFromRequirements,                                                  \
      (Handle environment, const TensorType *type, Handle requirements, Handle *buffer))          \
    F(GetTensorBufferPackedSize, (Handle buffer, size_t *bytes))                                  \
    F(LockTensorBuffer, (Handle buffer, void **address, int mode))                                \
    F(UnlockTensorBuffer, (Handle buffer))                                                        \
    F(RunCompiledModel, (Handle compiled, size_t signature, size_t inputs, Handle *input,         \
                         size_t outputs, Handle *output))                                         \
    F(CompiledModelIsFullyAccelerated, (Handle compiled, bool *fully))

#define LITERT_DECLARE(name, arguments) int(*name) arguments;
typedef struct {
    LITERT_FUNCTIONS(LITERT_DECLARE)
} LiteRt;
#undef LITERT_DECLARE

/* Opens a library, or ends the process with an error of the kind `runtime`.
 * `release` is the version that the caller takes it for; it must be one of LITERT_ABI_RELEASE. */
LiteRt litert_open(const char *path, const char *release);

#endif
