/* sandbox/program_cache.c: compiled programs on disk, so that a program is compiled once a machine.
 *
 * Loading compiled code is running it: Wasmtime trusts the bytes. So the folder must be ours alone
 * (mode 0700, our user), an entry's name is a hash of all that the code depends on, and its content
 * carries a hash of itself. A damaged entry is removed and compiled again. Entries are written by
 * renaming: readers see a whole one or none. Stateless; any thread. */
#include "sandbox/runtime.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/file.h"
#include "base/log.h"
#include "realm_deps.h"
#include "sandbox/program_cache.h"

#define MAGIC      "realm-program-1\n"
#define MAGIC_SIZE (sizeof MAGIC - 1)
#define HASH_SIZE  32

void program_cache_hash(char hex[65], const void *const *parts, const size_t *sizes, int count)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    int ok = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL);
    for (int i = 0; ok && i < count; i++)
        ok = EVP_DigestUpdate(context, parts[i], sizes[i]);
    ok = ok && EVP_DigestFinal_ex(context, digest, &size) && size == HASH_SIZE;
    EVP_MD_CTX_free(context);
    hex[0] = '\0'; /* no hash: no cache, and nothing is found under an empty name */
    for (unsigned i = 0; ok && i < HASH_SIZE; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* Programs run without a cache too, only start later: a home that is missing or cannot be written must
 * not keep anyone from running them. */
static realm_status do_without(sandbox_host *h, const realm_error *why)
{
    LOG_W("sandbox", "programs are not cached: %s", why->message);
    h->cache_folder[0] = '\0';
    return REALM_OK;
}

realm_status program_cache_open(sandbox_host *h, const char *folder, realm_error *error)
{
    if (folder && !*folder)
        return REALM_OK;
    if (!folder) {
        realm_status status = file_cache_path(h->cache_folder, sizeof h->cache_folder, "programs",
                                              error);
        if (status != REALM_OK)
            return do_without(h, error);
    } else if (snprintf(h->cache_folder, sizeof h->cache_folder, "%s", folder) >=
               (int)sizeof h->cache_folder) {
        return realm_fail(error, REALM_TOO_LARGE, "the program cache's path is too long");
    }
    realm_status status = file_make_folders(h->cache_folder, error);
    if (status != REALM_OK)
        return do_without(h, error);
    struct stat info;
    if (stat(h->cache_folder, &info) != 0 || info.st_uid != geteuid() || (info.st_mode & 077)) {
        LOG_W("sandbox",
              "programs are not cached: %s may be changed by others (it must be ours, mode 0700)",
              h->cache_folder);
        h->cache_folder[0] = '\0';
    }
    return REALM_OK;
}

void program_cache_path(const sandbox_host *h, const char *hash, int memory64, char *path,
                        size_t size)
{
    path[0] = '\0';
    if (!h->cache_folder[0] || !hash[0])
        return;
    char settings[512];
    snprintf(settings, sizeof settings, "%s|%s|%d|%llu|%llu|%s", realm_deps_version(),
             WASM_ENGINES_SETTINGS, memory64, (unsigned long long)h->options.max_memory_bytes,
             (unsigned long long)h->options.max_memory64_bytes, cpu_name());
    const void *parts[] = {hash, settings};
    const size_t sizes[] = {strlen(hash), strlen(settings)};
    char name[65];
    program_cache_hash(name, parts, sizes, 2);
    if (!name[0] || snprintf(path, size, "%s/%s.compiled", h->cache_folder, name) >= (int)size)
        path[0] = '\0';
}

static int is_whole(const file_map *file)
{
    if (file->size < MAGIC_SIZE + 64 || memcmp(file->data, MAGIC, MAGIC_SIZE) != 0)
        return 0;
    const void *content = file->data + MAGIC_SIZE + 64;
    size_t size = file->size - MAGIC_SIZE - 64;
    char hash[65];
    program_cache_hash(hash, &content, &size, 1);
    return hash[0] && memcmp(hash, file->data + MAGIC_SIZE, 64) == 0;
}

realm_status program_cache_load(sandbox_host *h, const char *path, int memory64,
                                wasmtime_module_t **out, realm_error *error)
{
    file_map file;
    realm_status status = file_map_open(&file, path, error);
    if (status != REALM_OK)
        return status;
    if (!is_whole(&file)) {
        status = realm_fail(error, REALM_CORRUPT, "%s is damaged", path);
    } else {
        wasmtime_error_t *e = wasmtime_module_deserialize(
            h->engines[memory64], file.data + MAGIC_SIZE + 64, file.size - MAGIC_SIZE - 64, out);
        if (e)
            status = wasm_engines_fail(error, REALM_CORRUPT, e, path);
    }
    file_map_close(&file);
    if (status != REALM_OK)
        unlink(path);
    return status;
}

realm_status program_cache_save(const char *path, const wasmtime_module_t *module,
                                realm_error *error)
{
    wasm_byte_vec_t code;
    wasmtime_error_t *e = wasmtime_module_serialize(module, &code);
    if (e)
        return wasm_engines_fail(error, REALM_INTERNAL, e, "compiled code");
    realm_status status;
    char *whole = malloc(MAGIC_SIZE + 64 + code.size);
    if (!whole) {
        status = realm_fail_memory(error, code.size, "a compiled program");
    } else {
        const void *content = code.data;
        char hash[65];
        program_cache_hash(hash, &content, &code.size, 1);
        memcpy(whole, MAGIC, MAGIC_SIZE);
        memcpy(whole + MAGIC_SIZE, hash, 64);
        memcpy(whole + MAGIC_SIZE + 64, code.data, code.size);
        status = file_write(path, whole, MAGIC_SIZE + 64 + code.size, error);
    }
    free(whole);
    wasm_byte_vec_delete(&code);
    return status;
}
