/* model/weight_folder.c: see weight_folder.h. A file's time of change says when it was last used: it is
 * set whenever the file is opened for a model. */
#include "model/weight_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "compute/weight_file.h"

#define ENDING ".weights"

/* Bytes of weights below which packing costs less than it takes to look for a file. */
#define WORTH_BYTES ((uint64_t)4 << 20)

#define STALE_SECONDS 3600
#define MAX_FILES     4096

static int is_ours_alone(const char *folder)
{
    struct stat info;
    return stat(folder, &info) == 0 && info.st_uid == geteuid() && !(info.st_mode & 077);
}

/* Where the model's file lies in the folder; says in the log why if there can be none. */
static int path_of(char *path, size_t size, const char *folder, const gguf *g, const backend *b,
                   uint8_t identity[WEIGHT_IDENTITY_SIZE])
{
    realm_error why;
    char hex[2 * WEIGHT_IDENTITY_SIZE + 1];
    realm_status status = file_make_folders(folder, &why);
    if (status == REALM_OK && !is_ours_alone(folder))
        status = realm_fail(&why, REALM_UNSUPPORTED,
                            "%s may be changed by others (it must be ours, mode 0700)", folder);
    if (status == REALM_OK)
        status = gguf_identity(g, identity, &why);
    if (status == REALM_OK) {
        for (int i = 0; i < WEIGHT_IDENTITY_SIZE; i++)
            snprintf(hex + 2 * i, 3, "%02x", identity[i]);
        int length = snprintf(path, size, "%s/%s-%s" ENDING, folder, hex, b->table->kind);
        if (length < 0 || (size_t)length >= size)
            status = realm_fail(&why, REALM_TOO_LARGE, "the path of %s is too long", folder);
    }
    if (status != REALM_OK)
        LOG_W("weights", "packed weights are not kept: %s", why.message);
    return status == REALM_OK;
}

_Static_assert(WEIGHT_IDENTITY_SIZE == GGUF_IDENTITY_SIZE, "one is the other");

realm_status weight_folder_open(weight_cache **out, const char *folder, int map, const gguf *g,
                                const backend *b, realm_error *error)
{
    char path[4096];
    weight_cache_options options = {.path = path,
                                    .mode = map ? WEIGHT_CACHE_MAP : WEIGHT_CACHE_READ};
    *out = NULL;
    if (!folder || !*folder || gguf_shard_descriptor(g, 0) < 0 ||
        gguf_tensor_bytes(g) < WORTH_BYTES ||
        !path_of(path, sizeof path, folder, g, b, options.identity))
        return REALM_OK;
    char *origin = realpath(gguf_shard_path(g, 0), NULL);
    options.origin = origin;
    realm_status status = weight_cache_open(out, &options, error);
    free(origin);
    return status;
}

void weight_folder_save(weight_cache *c)
{
    if (!c)
        return;
    realm_error why;
    weight_cache_facts facts = weight_cache_facts_get(c);
    const weight_cache_options *o = weight_cache_options_get(c);
    if (!facts.added && !facts.found)
        return; /* a backend that packs nothing, or keeps none of it */
    if (!facts.added) {
        LOG_I("weights", "%.0f MiB of packed weights from %s",
              (double)facts.found_bytes / (1 << 20), o->path);
        utimensat(AT_FDCWD, o->path, NULL, 0); /* used now; if not, it is only forgotten sooner */
        return;
    }
    if (weight_cache_save(c, &why) != REALM_OK) {
        LOG_W("weights", "packed weights are not kept: %s", why.message);
        return;
    }
    LOG_I("weights", "%.0f MiB of weights packed and kept in %s",
          (double)facts.added_bytes / (1 << 20), o->path);
    weight_folder_tidy(o->path, o->origin, WEIGHT_FOLDER_BYTES);
}

/* ---- tidying -------------------------------------------------------------------------------- */

typedef struct found_file {
    char name[256];
    uint64_t bytes;
    struct timespec used;
} found_file;

static int compare_use(const void *a, const void *b)
{
    const struct timespec *x = &((const found_file *)a)->used, *y = &((const found_file *)b)->used;
    if (x->tv_sec != y->tv_sec)
        return x->tv_sec < y->tv_sec ? -1 : 1;
    return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

/* 1 if a file of packed weights was made from a model at that place. Damaged ones are of nobody. */
static int is_from(const char *path, const char *origin)
{
    weight_file f;
    realm_status status = weight_file_open_table(&f, path, NULL);
    if (status != REALM_OK)
        return status == REALM_CORRUPT;
    int from = *origin && strcmp(f.origin, origin) == 0;
    weight_file_close(&f);
    return from;
}

static int ends_with(const char *text, const char *ending)
{
    size_t size = strlen(text), n = strlen(ending);
    return size >= n && strcmp(text + size - n, ending) == 0;
}

/* What is to go whatever the size of the rest. */
static int is_stale(const char *name, const char *path, const char *own, const char *origin,
                    const struct stat *info)
{
    if (strstr(name, ENDING ".tmp-"))
        return info->st_mtime + STALE_SECONDS < time(NULL);
    const char *device = strrchr(name, '-'), *own_device = strrchr(own, '-');
    return device && own_device && strcmp(device, own_device) == 0 && is_from(path, origin);
}

/* Removes what is stale and lists the rest, without the file that stays. */
static size_t sweep(const char *folder, const char *own, const char *origin, found_file *files)
{
    size_t count = 0;
    DIR *entries = opendir(folder);
    for (struct dirent *e; entries && (e = readdir(entries)) && count < MAX_FILES;) {
        char path[4096];
        struct stat info;
        int length = snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (length < 0 || (size_t)length >= sizeof path || !strstr(e->d_name, ENDING) ||
            strcmp(e->d_name, own) == 0 || lstat(path, &info) != 0 || !S_ISREG(info.st_mode))
            continue;
        if (is_stale(e->d_name, path, own, origin, &info)) {
            unlink(path);
        } else if (ends_with(e->d_name, ENDING)) {
            found_file *f = &files[count++];
            snprintf(f->name, sizeof f->name, "%s", e->d_name);
            f->bytes = (uint64_t)info.st_blocks * 512;
#if defined(__APPLE__)
            f->used = info.st_mtimespec;
#else
            f->used = info.st_mtim;
#endif
        }
    }
    if (entries)
        closedir(entries);
    return count;
}

void weight_folder_tidy(const char *path, const char *origin, uint64_t limit_bytes)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');
    struct stat own;
    found_file *files = malloc(MAX_FILES * sizeof *files);
    if (!files || !slash || stat(path, &own) != 0) {
        free(files);
        return; /* the next one to save tidies */
    }
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    size_t count = sweep(folder, slash + 1, origin, files);
    uint64_t bytes = (uint64_t)own.st_blocks * 512;
    for (size_t i = 0; i < count; i++)
        bytes += files[i].bytes;
    qsort(files, count, sizeof *files, compare_use);
    for (size_t i = 0; i < count && bytes > limit_bytes; i++) {
        char old[4400];
        snprintf(old, sizeof old, "%s/%s", folder, files[i].name);
        if (unlink(old) == 0)
            bytes -= files[i].bytes;
    }
    free(files);
}
