/* formats/gguf_identity.c: which content a model's files have, without reading all of it.
 *
 * Of each file go in: its size, when it was last written (to the nanosecond), everything before its
 * tensors' data (all metadata, names, shapes, offsets) and a page from the middle of its tensors, of
 * every one up to SAMPLES of them. Not its name, place or inode: a model that is moved or renamed
 * stays itself, one that is trained on, quantized anew, cut off or downloaded again does not. What
 * goes unseen is a change of other bytes by someone who then sets the file's time back.
 *
 * Samples are read with pread, which reads what it is asked for; a page fault in the mapping would
 * read its whole neighbourhood from a cold disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "formats/gguf_internal.h"

#define SAMPLES      1024 /* of all files together: 0.1 s on a slow disk */
#define SAMPLE_BYTES 4096

typedef struct file_facts {
    uint64_t size, seconds, nanoseconds;
    checksum head;
} file_facts;

static realm_status fail_file(const gguf_file *file, const char *doing, realm_error *error)
{
    return realm_fail(error, REALM_IO, "cannot %s '%s': %s", doing, gguf_path_tail(file->path),
                      strerror(errno));
}

static realm_status read_facts(const gguf_file *file, file_facts *facts, realm_error *error)
{
    struct stat info;
    if (file->map.descriptor < 0)
        return realm_fail(error, REALM_UNSUPPORTED, "a model in memory has no identity");
    if (fstat(file->map.descriptor, &info) != 0)
        return fail_file(file, "examine", error);
    size_t head = file->map.size;
    for (size_t i = 0; i < file->tensor_count; i++)
        if (file->tensors[i].file_offset < head)
            head = (size_t)file->tensors[i].file_offset;
#if defined(__APPLE__)
    struct timespec written = info.st_mtimespec;
#else
    struct timespec written = info.st_mtim;
#endif
    *facts = (file_facts){(uint64_t)info.st_size, (uint64_t)written.tv_sec,
                          (uint64_t)written.tv_nsec, checksum_of(file->map.data, head)};
    return REALM_OK;
}

static realm_status read_sample(const gguf *g, const gguf_tensor *t, checksum *sum,
                                realm_error *error)
{
    uint8_t bytes[SAMPLE_BYTES];
    const gguf_file *file = &g->files[t->shard];
    size_t size = t->size < sizeof bytes ? t->size : sizeof bytes;
    uint64_t at = t->file_offset + (t->size - size) / 2;
    ssize_t got = pread(file->map.descriptor, bytes, size, (off_t)at);
    if (got < 0)
        return fail_file(file, "read", error);
    if ((size_t)got < size)
        return realm_fail(error, REALM_CORRUPT, "'%s' has become shorter",
                          gguf_path_tail(file->path));
    *sum = checksum_of(bytes, size);
    return REALM_OK;
}

realm_status gguf_identity(const gguf *g, uint8_t identity[GGUF_IDENTITY_SIZE], realm_error *error)
{
    size_t n_samples = g->tensor_count < SAMPLES ? g->tensor_count : SAMPLES;
    size_t facts_bytes = g->file_count * sizeof(file_facts);
    size_t bytes = facts_bytes + n_samples * sizeof(checksum);
    file_facts *facts = calloc(1, bytes + 1);
    if (!facts)
        return realm_fail_memory(error, bytes, "a model's identity");
    checksum *samples = (checksum *)(void *)(facts + g->file_count);
    realm_status status = REALM_OK;
    for (uint32_t i = 0; i < g->file_count && status == REALM_OK; i++)
        status = read_facts(&g->files[i], &facts[i], error);
    for (size_t i = 0; i < n_samples && status == REALM_OK; i++)
        status = read_sample(g, &g->tensors[i * g->tensor_count / n_samples], &samples[i], error);
    checksum all = checksum_of(facts, bytes);
    free(facts);
    if (status == REALM_OK)
        memcpy(identity, &all, sizeof all);
    return status;
}
