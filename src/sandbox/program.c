/* sandbox/program.c: from bytes to a module that can be instantiated, or a sentence that says why
 * not.
 *
 * Wasmtime validates WebAssembly; this file checks what it cannot know: that the module imports
 * only our functions with our types, exports what a program exports, and fits the host. */
#include "sandbox/program.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "sandbox/host_functions.h"
#include "sandbox/program_cache.h"
#include "sandbox/runtime.h"

/* ---- checks --------------------------------------------------------------------------------------- */

static int name_is(const wasm_name_t *name, const char *text)
{
    return name->size == strlen(text) && memcmp(name->data, text, name->size) == 0;
}

static int same_types(const wasm_valtype_vec_t *a, const wasm_valtype_vec_t *b)
{
    if (a->size != b->size)
        return 0;
    for (size_t i = 0; i < a->size; i++)
        if (wasm_valtype_kind(a->data[i]) != wasm_valtype_kind(b->data[i]))
            return 0;
    return 1;
}

static int same_function(const wasm_functype_t *a, const wasm_functype_t *b)
{
    return same_types(wasm_functype_params(a), wasm_functype_params(b)) &&
           same_types(wasm_functype_results(a), wasm_functype_results(b));
}

static realm_status check_import(program *p, const wasm_importtype_t *import, realm_error *error)
{
    const wasm_name_t *module = wasm_importtype_module(import);
    const wasm_name_t *name = wasm_importtype_name(import);
    const char *ours = p->info.memory64 ? "realm64" : "realm";
    const wasm_externtype_t *type = wasm_importtype_type(import);
    if (!name_is(module, ours))
        return realm_fail(
            error, REALM_INVALID,
            "import '%.*s.%.*s': a program with a %d-bit memory can import from '%s' only",
            (int)module->size, module->data, (int)name->size, name->data,
            p->info.memory64 ? 64 : 32, ours);
    const host_function *f = host_functions_find(name->data, name->size);
    if (!f || (f->only64 && !p->info.memory64))
        return realm_fail(error, REALM_INVALID, "import '%s.%.*s': there is no such host function",
                          ours, (int)name->size, name->data);
    wasm_functype_t *wanted = host_functions_type(f, p->info.memory64);
    const wasm_functype_t *actual = wasm_externtype_kind(type) == WASM_EXTERN_FUNC
                                        ? wasm_externtype_as_functype_const(type)
                                        : NULL;
    int same = actual && same_function(actual, wanted);
    wasm_functype_delete(wanted);
    p->info.capabilities |= f->capability;
    p->info.n_imports++;
    if (same)
        return REALM_OK;
    char signature[160];
    host_functions_describe(f, p->info.memory64, signature, sizeof signature);
    return realm_fail(error, REALM_INVALID, "import '%s.%s' must be a function %s", ours, f->name,
                      signature);
}

/* The exported function must be () -> i32. */
static realm_status check_function(const wasm_externtype_t *type, const char *name,
                                   realm_error *error)
{
    if (type && wasm_externtype_kind(type) == WASM_EXTERN_FUNC) {
        const wasm_functype_t *f = wasm_externtype_as_functype_const(type);
        const wasm_valtype_vec_t *results = wasm_functype_results(f);
        if (wasm_functype_params(f)->size == 0 && results->size == 1 &&
            wasm_valtype_kind(results->data[0]) == WASM_I32)
            return REALM_OK;
    }
    return realm_fail(error, REALM_INVALID, "export '%s' %s; it must be a function () -> i32", name,
                      type ? "is something else" : "is missing");
}

static realm_status check_memory(program *p, const wasm_externtype_t *type, realm_error *error)
{
    if (!type || wasm_externtype_kind(type) != WASM_EXTERN_MEMORY)
        return realm_fail(error, REALM_INVALID, "export 'memory' %s; it must be the linear memory",
                          type ? "is something else" : "is missing");
    const wasm_memorytype_t *memory = wasm_externtype_as_memorytype_const(type);
    const sandbox_host_options *o = &p->host->options;
    uint64_t limit = p->info.memory64 ? o->max_memory64_bytes : o->max_memory_bytes;
    uint64_t pages = wasmtime_memorytype_minimum(memory);
    if (pages > limit / wasmtime_memorytype_page_size(memory))
        return realm_fail(error, REALM_UNSUPPORTED,
                          "its memory begins with %" PRIu64
                          " pages; the host gives at most %" PRIu64 " MiB",
                          pages, limit >> 20);
    p->memory_bytes = pages * wasmtime_memorytype_page_size(memory);
    p->info.memory_bytes = p->memory_bytes;
    return REALM_OK;
}

static const wasm_externtype_t *find_export(const wasm_exporttype_vec_t *exports, const char *name)
{
    for (size_t i = 0; i < exports->size; i++)
        if (name_is(wasm_exporttype_name(exports->data[i]), name))
            return wasm_exporttype_type(exports->data[i]);
    return NULL;
}

static realm_status check_exports(program *p, const wasm_exporttype_vec_t *exports,
                                  realm_error *error)
{
    realm_status status = check_memory(p, find_export(exports, "memory"), error);
    if (status == REALM_OK)
        status = check_function(find_export(exports, "realm_abi"), "realm_abi", error);
    if (status == REALM_OK)
        status = check_function(find_export(exports, "realm_handle"), "realm_handle", error);
    return status;
}

static realm_status check(program *p, realm_error *error)
{
    wasm_exporttype_vec_t exports;
    wasmtime_module_exports(p->module, &exports);
    wasm_importtype_vec_t imports;
    wasmtime_module_imports(p->module, &imports);
    realm_status status = REALM_OK;
    for (size_t i = 0; status == REALM_OK && i < imports.size; i++)
        status = check_import(p, imports.data[i], error);
    if (status == REALM_OK)
        status = check_exports(p, &exports, error);
    wasm_exporttype_vec_delete(&exports);
    wasm_importtype_vec_delete(&imports);
    return status;
}

/* ---- compiling ------------------------------------------------------------------------------------ */

/* Which of the two engines a module needs stands in its memory section (5, or 2 if it imports one).
 * Only a glance: a wrong guess ends in a sentence of Wasmtime's or of check_memory's. */
static uint64_t read_leb(const uint8_t *bytes, size_t size, size_t *at)
{
    uint64_t value = 0;
    for (unsigned shift = 0; *at < size && shift < 64; shift += 7) {
        uint8_t b = bytes[(*at)++];
        value |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            break;
    }
    return value;
}

static int glance_memory64(const uint8_t *bytes, size_t size)
{
    for (size_t at = 8; at < size;) {
        uint8_t section = bytes[at++];
        uint64_t length = read_leb(bytes, size, &at);
        if (length > size - at)
            return 0;
        if (section == 5) {
            size_t inside = at;
            uint64_t count = read_leb(bytes, size, &inside);
            return count && inside < size && (bytes[inside] & 4) != 0;
        }
        at += length;
    }
    return 0;
}

static realm_status compile(program *p, const void *bytes, size_t size, realm_error *error)
{
    char path[4200];
    program_cache_path(p->host, p->info.hash, p->info.memory64, path, sizeof path);
    realm_error cache_error = {0};
    if (path[0] &&
        program_cache_load(p->host, path, p->info.memory64, &p->module, &cache_error) == REALM_OK) {
        p->info.from_cache = 1;
        atomic_fetch_add(&p->host->cache_hits, 1);
        return REALM_OK;
    }
    if (cache_error.status == REALM_CORRUPT)
        LOG_W("sandbox", "compiling '%s' again: %s", p->name, cache_error.message);
    atomic_fetch_add(&p->host->cache_misses, 1);
    wasmtime_error_t *e = wasmtime_module_new(p->host->engines[p->info.memory64], bytes, size,
                                              &p->module);
    if (e)
        return wasm_engines_fail(error, REALM_INVALID, e, "not a valid program");
    if (path[0] && program_cache_save(path, p->module, &cache_error) != REALM_OK)
        LOG_W("sandbox", "'%s' is not cached: %s", p->name, cache_error.message);
    return REALM_OK;
}

static realm_status link_program(program *p, realm_error *error)
{
    wasmtime_error_t *e = wasmtime_linker_instantiate_pre(p->host->linkers[p->info.memory64],
                                                          p->module, &p->pre);
    return e ? wasm_engines_fail(error, REALM_INVALID, e, "the program cannot be linked")
             : REALM_OK;
}

static realm_status build(program *p, const void *bytes, size_t size, realm_error *error)
{
    if (size < 8 || memcmp(bytes, "\0asm", 4) != 0)
        return realm_fail(error, REALM_INVALID,
                          "neither a WebAssembly module nor WebAssembly text");
    p->info.memory64 = glance_memory64(bytes, size);
    program_cache_hash(p->info.hash, &bytes, &size, 1);
    realm_status status = compile(p, bytes, size, error);
    if (status == REALM_OK)
        status = check(p, error);
    if (status == REALM_OK)
        status = link_program(p, error);
    return status;
}

static realm_status build_text(program *p, const void *text, size_t size, realm_error *error)
{
    wasm_byte_vec_t bytes;
    wasmtime_error_t *e = wasmtime_wat2wasm(text, size, &bytes);
    if (e)
        return wasm_engines_fail(error, REALM_INVALID, e, "WebAssembly text");
    realm_status status = build(p, bytes.data, bytes.size, error);
    wasm_byte_vec_delete(&bytes);
    return status;
}

realm_status program_open(program **out, sandbox_host *host, const char *name, const void *bytes,
                          size_t size, realm_error *error)
{
    if (size > host->options.max_module_bytes)
        return realm_fail(error, REALM_TOO_LARGE,
                          "program '%s' has %zu bytes; the host takes at most %" PRIu64, name, size,
                          host->options.max_module_bytes);
    uint64_t began = clock_ns();
    program *p = calloc(1, sizeof *p);
    char *own_name = strdup(name);
    if (!p || !own_name) {
        free(p);
        free(own_name);
        return realm_fail_memory(error, sizeof *p, "a program");
    }
    atomic_init(&p->references, 1);
    p->host = host;
    p->name = own_name;
    p->info.name = own_name;
    int is_text = size < 4 || memcmp(bytes, "\0asm", 4) != 0;
    realm_status status = is_text ? build_text(p, bytes, size, error)
                                  : build(p, bytes, size, error);
    if (status != REALM_OK) {
        program_release(p);
        return realm_fail_in(error, status, "program '%s'", name);
    }
    p->info.prepare_ns = clock_ns() - began;
    *out = p;
    return REALM_OK;
}

program *program_retain(program *p)
{
    atomic_fetch_add(&p->references, 1);
    return p;
}

void program_release(program *p)
{
    if (!p || atomic_fetch_sub(&p->references, 1) != 1)
        return;
    if (p->pre)
        wasmtime_instance_pre_delete(p->pre);
    if (p->module)
        wasmtime_module_delete(p->module);
    free(p->name);
    free(p);
}

void program_describe(const program *p, program_info *out)
{
    *out = p->info;
}
