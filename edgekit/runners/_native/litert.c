#define _GNU_SOURCE
#include "litert.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>

#include "support.h"

/* The library keeps a table of its own functions. How long it is and what stands where tells releases apart that export
 * the same names with other arguments. */
#define TABLE "kLiteRtRuntimeBuiltin"
#define TABLE_BYTES (169 * sizeof(void *))

static const struct {
    size_t slot;
    const char *name;
} LANDMARKS[] = {
    {0, "LiteRtCreateEnvironment"},  {14, "LiteRtGetRankedTensorType"}, {36, "LiteRtCreateModelFromFile"},
    {49, "LiteRtCreateCompiledModel"}, {54, "LiteRtRunCompiledModel"},    {105, "LiteRtCreateManagedTensorBufferFromRequirements"},
    {116, "LiteRtLockTensorBuffer"},   {151, "LiteRtCreateOptions"},      {155, "LiteRtAddOpaqueOptions"},
};

static void *function(void *library, const char *path, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL)
        fail(RUNTIME, "%s is not LiteRT %s: it has no %s", path, LITERT_ABI_RELEASE, name);
    return found;
}

static void require_layout(void *library, const char *path) {
    void **table = function(library, path, TABLE);
    Dl_info info;
    ElfW(Sym) *symbol = NULL;
    if (dladdr1(table, &info, (void **)&symbol, RTLD_DL_SYMENT) == 0 || symbol == NULL || symbol->st_size != TABLE_BYTES)
        fail(RUNTIME, "%s is not LiteRT %s: its table of functions has %zu bytes, not %zu", path, LITERT_ABI_RELEASE,
             symbol == NULL ? (size_t)0 : (size_t)symbol->st_size, TABLE_BYTES);
    for (size_t i = 0; i < sizeof LANDMARKS / sizeof *LANDMARKS; i++)
        if (table[LANDMARKS[i].slot] != function(library, path, LANDMARKS[i].name))
            fail(RUNTIME, "%s is not LiteRT %s: %s does not stand where it should in its table of functions", path,
                 LITERT_ABI_RELEASE, LANDMARKS[i].name);
}

LiteRt litert_open(const char *path, const char *release) {
    size_t family = strlen(LITERT_ABI_RELEASE);
    if (strncmp(release, LITERT_ABI_RELEASE, family) != 0 || release[family] != '.')
        fail(RUNTIME, "this program speaks the C API of LiteRT %s.*, not that of %s", LITERT_ABI_RELEASE, release);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail(RUNTIME, "%s", dlerror());
    require_layout(library, path);
    LiteRt found;
#define LITERT_FIND(name, arguments) found.name = (int(*) arguments)function(library, path, "LiteRt" #name);
    LITERT_FUNCTIONS(LITERT_FIND)
#undef LITERT_FIND
    return found;
}
