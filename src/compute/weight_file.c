/* compute/weight_file.c: see weight_file.h. First reading, then writing. */
#include "compute/weight_file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/file.h"
#include "base/numa.h"

#define MAGIC        "realm weights\n\0\0" /* sixteen bytes with C's own zero */
#define NATIVE_ORDER 0x01020304u
#define HEADER_SIZE  4096

/* More than any model has: what a table may be at most. */
#define MAX_TABLE_BYTES ((uint64_t)1 << 30)

/* Bytes that one thread takes to read at once: enough for a disk to be fast. */
#define READ_BYTES (4 * WEIGHT_FILE_CHUNK)

/* How far ahead of the reading threads the disk is sent. They share the file, so the system sees no
 * sequence in what they read and would not go ahead by itself: half the speed of a cold disk. */
#define AHEAD_BYTES (8 * READ_BYTES)

/* Bytes written at once, at multiples of itself: file systems that can keep a file in huge pages do
 * so by the size of the writes. */
#define WRITE_BYTES (4 * WEIGHT_FILE_CHUNK)

#define MAX_THREADS 64

typedef struct file_header {
    char magic[16];
    uint32_t byte_order, version;
    uint8_t identity[WEIGHT_IDENTITY_SIZE];
    uint64_t file_bytes, table_bytes, data_offset, data_bytes;
    uint32_t n_entries, name_bytes, origin_bytes, chunk_bytes;
    checksum table;
    checksum header; /* of all before it */
} file_header;

_Static_assert(sizeof(file_header) <= HEADER_SIZE, "a header is one page");
_Static_assert(sizeof(weight_file_entry) == 48, "entries have no padding");

static realm_status fail_errno(realm_error *error, const char *path, const char *doing)
{
    realm_status status = errno == ENOENT || errno == ENOTDIR ? REALM_NOT_FOUND : REALM_IO;
    return realm_fail(error, status, "cannot %s '%s': %s", doing, path, strerror(errno));
}

static uint64_t round_up(uint64_t bytes, uint64_t step)
{
    return (bytes + step - 1) / step * step;
}

static uint64_t chunks_of(uint64_t data_bytes)
{
    return (data_bytes + WEIGHT_FILE_CHUNK - 1) / WEIGHT_FILE_CHUNK;
}

/* Reads all of it; REALM_CORRUPT if the file ends before. */
static realm_status read_at(int descriptor, const char *path, void *to, size_t size,
                            uint64_t offset, realm_error *error)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(descriptor, (char *)to + done, size - done, (off_t)(offset + done));
        if (got == 0)
            return realm_fail(error, REALM_CORRUPT, "'%s' is cut short", path);
        if (got < 0 && errno != EINTR)
            return fail_errno(error, path, "read");
        if (got > 0)
            done += (size_t)got;
    }
    return REALM_OK;
}

/* ---- header and table ----------------------------------------------------------------------- */

static uint64_t table_bytes_of(const file_header *h)
{
    return (uint64_t)h->n_entries * sizeof(weight_file_entry) +
           chunks_of(h->data_bytes) * sizeof(checksum) + h->name_bytes + h->origin_bytes;
}

/* Everything that can be said of a header without its table. */
static int header_is_sound(const file_header *h, uint64_t file_bytes)
{
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->byte_order != NATIVE_ORDER ||
        h->version != WEIGHT_FILE_VERSION || h->chunk_bytes != WEIGHT_FILE_CHUNK)
        return 0;
    if (!checksum_equal(h->header, checksum_of(h, offsetof(file_header, header))))
        return 0;
    return h->file_bytes == file_bytes && h->data_bytes <= file_bytes &&
           h->data_offset == file_bytes - h->data_bytes &&
           h->data_offset % WEIGHT_FILE_ALIGN == 0 && h->table_bytes <= MAX_TABLE_BYTES &&
           h->table_bytes == table_bytes_of(h) && HEADER_SIZE + h->table_bytes <= h->data_offset;
}

static int entry_is_sound(const file_header *h, const weight_file_entry *e)
{
    return e->offset % 64 == 0 && e->size > 0 && e->size <= h->data_bytes &&
           e->offset <= h->data_bytes - e->size && e->name <= h->name_bytes &&
           e->name_size <= h->name_bytes - e->name;
}

static realm_status check_table(const file_header *h, const uint8_t *table, const char *path,
                                realm_error *error)
{
    int sound = checksum_equal(h->table, checksum_of(table, h->table_bytes));
    const weight_file_entry *entries = (const weight_file_entry *)(const void *)table;
    for (uint32_t i = 0; i < h->n_entries && sound; i++)
        sound = entry_is_sound(h, &entries[i]);
    return sound ? REALM_OK : realm_fail(error, REALM_CORRUPT, "'%s' is damaged", path);
}

/* Opens the file if it is ours to trust. */
static int open_own(const char *path, struct stat *info, realm_error *error)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0)
        return (int)fail_errno(error, path, "open");
    realm_status status = REALM_OK;
    if (fstat(descriptor, info) != 0)
        status = fail_errno(error, path, "examine");
    else if (!S_ISREG(info->st_mode))
        status = realm_fail(error, REALM_CORRUPT, "'%s' is not a regular file", path);
    else if (info->st_uid != geteuid() || (info->st_mode & 022))
        status = realm_fail(error, REALM_UNSUPPORTED,
                            "'%s' is another user's or may be written by others", path);
    if (status == REALM_OK)
        return descriptor;
    close(descriptor);
    return (int)status;
}

static realm_status read_table(weight_file *f, file_header *h, int descriptor, const char *path,
                               const struct stat *info, realm_error *error)
{
    realm_status status = read_at(descriptor, path, h, sizeof *h, 0, error);
    if (status != REALM_OK)
        return status;
    if (!header_is_sound(h, (uint64_t)info->st_size))
        return realm_fail(error, REALM_CORRUPT, "'%s' is damaged or of another version", path);
    f->table = malloc(h->table_bytes + 1);
    if (!f->table)
        return realm_fail_memory(error, h->table_bytes, "the table of packed weights");
    ((char *)f->table)[h->table_bytes] = '\0';
    status = read_at(descriptor, path, f->table, h->table_bytes, HEADER_SIZE, error);
    if (status == REALM_OK)
        status = check_table(h, f->table, path, error);
    memcpy(f->identity, h->identity, sizeof f->identity);
    f->data_bytes = h->data_bytes;
    f->file_bytes = h->file_bytes;
    f->entries = f->table;
    f->n_entries = h->n_entries;
    f->origin = (const char *)f->table + h->table_bytes - h->origin_bytes;
    f->names = f->origin - h->name_bytes;
    f->inode = info->st_ino;
    return status;
}

realm_status weight_file_open_table(weight_file *f, const char *path, realm_error *error)
{
    struct stat info;
    file_header header;
    *f = (weight_file){0};
    int descriptor = open_own(path, &info, error);
    if (descriptor < 0)
        return (realm_status)descriptor;
    realm_status status = read_table(f, &header, descriptor, path, &info, error);
    close(descriptor);
    if (status != REALM_OK)
        weight_file_close(f);
    return status;
}

/* ---- data ----------------------------------------------------------------------------------- */

typedef struct reading {
    int descriptor;
    const char *path;
    uint8_t *data; /* where the bytes go, or where they are mapped */
    int mapped;
    uint64_t data_offset, data_bytes;
    const checksum *sums;
    atomic_ullong next; /* the first byte that nobody has taken */
    atomic_int failed;
    pthread_mutex_t mutex; /* guards the error */
    realm_status status;
    realm_error error;
} reading;

static void read_fails(reading *r, realm_status status, const realm_error *error)
{
    pthread_mutex_lock(&r->mutex);
    r->status = status;
    r->error = *error;
    pthread_mutex_unlock(&r->mutex);
    atomic_store(&r->failed, 1);
}

static void send_disk(const reading *r, uint64_t from, uint64_t size)
{
#if defined(__linux__)
    if (from < r->data_bytes)
        posix_fadvise(r->descriptor, (off_t)(r->data_offset + from), (off_t)size,
                      POSIX_FADV_WILLNEED);
#else
    (void)r, (void)from, (void)size;
#endif
}

static realm_status read_piece(reading *r, uint64_t from, size_t size, realm_error *error)
{
    realm_status status = REALM_OK;
    if (!r->mapped)
        status = read_at(r->descriptor, r->path, r->data + from, size, r->data_offset + from,
                         error);
    for (uint64_t at = from; at < from + size && status == REALM_OK; at += WEIGHT_FILE_CHUNK) {
        size_t rest = (size_t)(from + size - at);
        rest = rest < WEIGHT_FILE_CHUNK ? rest : WEIGHT_FILE_CHUNK;
        if (!checksum_equal(checksum_of(r->data + at, rest), r->sums[at / WEIGHT_FILE_CHUNK]))
            status = realm_fail(error, REALM_CORRUPT, "'%s' is damaged at offset %" PRIu64, r->path,
                                r->data_offset + at);
    }
    return status;
}

static void *read_pieces(void *context)
{
    reading *r = context;
    while (!atomic_load(&r->failed)) {
        realm_error error;
        uint64_t from = atomic_fetch_add(&r->next, READ_BYTES);
        if (from >= r->data_bytes)
            break;
        send_disk(r, from + AHEAD_BYTES, READ_BYTES);
        uint64_t rest = r->data_bytes - from;
        realm_status status = read_piece(r, from, rest < READ_BYTES ? (size_t)rest : READ_BYTES,
                                         &error);
        if (status != REALM_OK)
            read_fails(r, status, &error);
    }
    return NULL;
}

/* Brings all data to memory and checks them, on some threads. */
static realm_status read_all(reading *r, int32_t n_threads, realm_error *error)
{
    pthread_t threads[MAX_THREADS];
    int32_t started = 0;
    int32_t wanted = n_threads > 0 ? n_threads : cpu_count();
    wanted = wanted < MAX_THREADS ? wanted : MAX_THREADS;
    pthread_mutex_init(&r->mutex, NULL);
    send_disk(r, 0, AHEAD_BYTES);
    while (started < wanted - 1 && (uint64_t)(started + 1) * READ_BYTES < r->data_bytes &&
           pthread_create(&threads[started], NULL, read_pieces, r) == 0)
        started++;
    read_pieces(r);
    while (started > 0)
        pthread_join(threads[--started], NULL);
    pthread_mutex_destroy(&r->mutex);
    if (r->status != REALM_OK && error)
        *error = r->error;
    return r->status;
}

/* Addresses for the data, aligned for huge pages: more is reserved and the rest given back. */
static uint8_t *reserve(size_t size)
{
    size_t more = size + WEIGHT_FILE_ALIGN;
    uint8_t *p = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t before = (size_t)(-(uintptr_t)p % WEIGHT_FILE_ALIGN);
    if (before)
        munmap(p, before);
    if (before < WEIGHT_FILE_ALIGN)
        munmap(p + before + size, WEIGHT_FILE_ALIGN - before);
    return p + before;
}

/* Memory for the data: the file's pages, or our own. Both ask for huge pages: a wish. */
static realm_status place(reading *r, realm_error *error)
{
    size_t size = (size_t)round_up(r->data_bytes, WEIGHT_FILE_ALIGN);
    r->data = reserve(size);
    if (!r->data)
        return realm_fail_memory(error, size, "packed weights");
    int failed = r->mapped ? mmap(r->data, (size_t)r->data_bytes, PROT_READ, MAP_SHARED | MAP_FIXED,
                                  r->descriptor, (off_t)r->data_offset) == MAP_FAILED
                           : mprotect(r->data, size, PROT_READ | PROT_WRITE) != 0;
    if (failed) {
        munmap(r->data, size);
        r->data = NULL;
        return realm_fail_memory(error, size, "packed weights");
    }
#if defined(__linux__)
    madvise(r->data, size, MADV_HUGEPAGE);
#endif
    if (!r->mapped) /* mapped pages are the system's cache, which lies where it was read */
        numa_interleave(r->data, size);
    return REALM_OK;
}

static realm_status read_data(weight_file *f, const file_header *h, int descriptor,
                              const weight_cache_options *o, realm_error *error)
{
    if (h->data_bytes == 0)
        return REALM_OK;
    reading r = {.descriptor = descriptor,
                 .path = o->path,
                 .mapped = o->mode == WEIGHT_CACHE_MAP,
                 .data_offset = h->data_offset,
                 .data_bytes = h->data_bytes,
                 .sums = (const checksum *)(const void *)(f->entries + f->n_entries)};
    realm_status status = place(&r, error);
    if (status != REALM_OK)
        return status;
    f->data = r.data;
    status = read_all(&r, o->n_threads, error);
    if (status == REALM_OK && !r.mapped)
        mprotect(r.data, (size_t)round_up(r.data_bytes, WEIGHT_FILE_ALIGN), PROT_READ);
    return status;
}

realm_status weight_file_open(weight_file *f, const weight_cache_options *o, realm_error *error)
{
    struct stat info;
    file_header header;
    *f = (weight_file){0};
    int descriptor = open_own(o->path, &info, error);
    if (descriptor < 0)
        return (realm_status)descriptor;
    realm_status status = read_table(f, &header, descriptor, o->path, &info, error);
    if (status == REALM_OK && memcmp(f->identity, o->identity, sizeof f->identity) != 0)
        status = realm_fail(error, REALM_NOT_FOUND, "'%s' is of another model", o->path);
    if (status == REALM_OK)
        status = read_data(f, &header, descriptor, o, error);
    close(descriptor);
    if (status != REALM_OK)
        weight_file_close(f);
    return status;
}

void weight_file_close(weight_file *f)
{
    if (f->data)
        munmap((void *)f->data, (size_t)round_up(f->data_bytes, WEIGHT_FILE_ALIGN));
    free(f->table);
    *f = (weight_file){0};
}

/* ---- writing -------------------------------------------------------------------------------- */

/* What a file is put together from. */
typedef struct writing {
    const weight_cache_options *options;
    const char *origin;
    const weight_file_part *parts;
    uint32_t n_parts;
    file_header header;
    uint8_t *table;
    file_writer file;
    uint8_t *stage; /* [WRITE_BYTES] on their way to the file */
    size_t staged;
    uint64_t written; /* of data */
} writing;

/* Sizes and offsets of everything. */
static realm_status plan(writing *w, realm_error *error)
{
    file_header *h = &w->header;
    uint64_t name_bytes = 0, data_bytes = 0;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        data_bytes = round_up(data_bytes, 64) + w->parts[i].key.size;
        name_bytes += strlen(w->parts[i].key.name);
    }
    if (name_bytes > MAX_TABLE_BYTES)
        return realm_fail(error, REALM_TOO_LARGE, "the names of packed weights are too long");
    *h = (file_header){.byte_order = NATIVE_ORDER,
                       .version = WEIGHT_FILE_VERSION,
                       .data_bytes = data_bytes,
                       .n_entries = w->n_parts,
                       .name_bytes = (uint32_t)name_bytes,
                       .origin_bytes = (uint32_t)strlen(w->origin),
                       .chunk_bytes = WEIGHT_FILE_CHUNK};
    memcpy(h->magic, MAGIC, sizeof h->magic);
    memcpy(h->identity, w->options->identity, sizeof h->identity);
    h->table_bytes = table_bytes_of(h);
    if (h->table_bytes > MAX_TABLE_BYTES)
        return realm_fail(error, REALM_TOO_LARGE, "too many packed weights for one file");
    h->data_offset = round_up(HEADER_SIZE + h->table_bytes, WEIGHT_FILE_ALIGN);
    h->file_bytes = h->data_offset + h->data_bytes;
    return REALM_OK;
}

/* The table without its checksums, which come as data are written. */
static realm_status make_table(writing *w, realm_error *error)
{
    const file_header *h = &w->header;
    w->table = calloc(1, (size_t)h->table_bytes + 1);
    w->stage = malloc(WRITE_BYTES);
    if (!w->table || !w->stage)
        return realm_fail_memory(error, (size_t)h->table_bytes + WRITE_BYTES,
                                 "the table of packed weights");
    weight_file_entry *entries = (weight_file_entry *)(void *)w->table;
    char *origin = (char *)w->table + h->table_bytes - h->origin_bytes;
    char *names = origin - h->name_bytes;
    uint64_t offset = 0;
    uint32_t name = 0;
    memcpy(origin, w->origin, h->origin_bytes);
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const weight_key *k = &w->parts[i].key;
        uint32_t name_size = (uint32_t)strlen(k->name);
        offset = round_up(offset, 64);
        entries[i] = (weight_file_entry){.offset = offset,
                                         .size = k->size,
                                         .name = name,
                                         .name_size = name_size,
                                         .type = k->type,
                                         .layout = k->layout,
                                         .n_rows = k->n_rows,
                                         .n_cols = k->n_cols,
                                         .first_row = k->first_row};
        memcpy(names + name, k->name, name_size);
        name += name_size;
        offset += k->size;
    }
    return REALM_OK;
}

/* A cache must not be what fills the disk: as much again as it takes stays free. */
static realm_status check_room(const writing *w, realm_error *error)
{
    struct statvfs disk;
    if (fstatvfs(w->file.descriptor, &disk) != 0)
        return fail_errno(error, w->options->path, "examine the disk of");
    uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize, wanted = w->header.file_bytes;
    if (room / 2 < wanted)
        return realm_fail(error, REALM_IO,
                          "%" PRIu64 " MiB of packed weights would leave '%s' with less free than "
                          "that (it has %" PRIu64 " MiB)",
                          wanted >> 20, w->options->path, room >> 20);
    return REALM_OK;
}

static realm_status flush(writing *w, realm_error *error)
{
    checksum *sums = (checksum *)(void *)(w->table +
                                          (size_t)w->n_parts * sizeof(weight_file_entry));
    for (size_t at = 0; at < w->staged; at += WEIGHT_FILE_CHUNK) {
        size_t rest = w->staged - at < WEIGHT_FILE_CHUNK ? w->staged - at : WEIGHT_FILE_CHUNK;
        sums[(w->written + at) / WEIGHT_FILE_CHUNK] = checksum_of(w->stage + at, rest);
    }
    realm_status status = file_writer_put(&w->file, w->header.data_offset + w->written, w->stage,
                                          w->staged, error);
    w->written += w->staged;
    w->staged = 0;
    return status;
}

/* data NULL: zeros. */
static realm_status put_data(writing *w, const void *data, size_t size, realm_error *error)
{
    realm_status status = REALM_OK;
    for (size_t done = 0; done < size && status == REALM_OK;) {
        size_t room = WRITE_BYTES - w->staged, n = size - done < room ? size - done : room;
        if (data)
            memcpy(w->stage + w->staged, (const uint8_t *)data + done, n);
        else
            memset(w->stage + w->staged, 0, n);
        w->staged += n;
        done += n;
        if (w->staged == WRITE_BYTES)
            status = flush(w, error);
    }
    return status;
}

static realm_status put_all(writing *w, realm_error *error)
{
    realm_status status = REALM_OK;
    uint64_t offset = 0;
    for (uint32_t i = 0; i < w->n_parts && status == REALM_OK; i++) {
        uint64_t start = round_up(offset, 64);
        status = put_data(w, NULL, (size_t)(start - offset), error);
        if (status == REALM_OK)
            status = put_data(w, w->parts[i].data, w->parts[i].key.size, error);
        offset = start + w->parts[i].key.size;
    }
    if (status == REALM_OK && w->staged)
        status = flush(w, error);
    file_header *h = &w->header;
    h->table = checksum_of(w->table, (size_t)h->table_bytes);
    h->header = checksum_of(h, offsetof(file_header, header));
    if (status == REALM_OK)
        status = file_writer_put(&w->file, HEADER_SIZE, w->table, (size_t)h->table_bytes, error);
    if (status == REALM_OK)
        status = file_writer_put(&w->file, 0, h, sizeof *h, error);
    return status;
}

realm_status weight_file_write(const weight_cache_options *options, const weight_file_part *parts,
                               uint32_t n_parts, realm_error *error)
{
    writing w = {.options = options,
                 .origin = options->origin ? options->origin : "",
                 .parts = parts,
                 .n_parts = n_parts};
    realm_status status = file_writer_open(&w.file, options->path, 0600, error);
    if (status != REALM_OK)
        return status;
    status = plan(&w, error);
    if (status == REALM_OK)
        status = make_table(&w, error);
    if (status == REALM_OK)
        status = check_room(&w, error);
    if (status == REALM_OK)
        status = put_all(&w, error);
    if (status == REALM_OK)
        status = file_writer_commit(&w.file, error);
    else
        file_writer_abandon(&w.file);
    free(w.table);
    free(w.stage);
    return status;
}
