/* base/file.c: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static realm_status fail_errno(realm_error *error, const char *path, const char *doing)
{
    realm_status status = errno == ENOENT || errno == ENOTDIR ? REALM_NOT_FOUND : REALM_IO;
    return realm_fail(error, status, "cannot %s '%s': %s", doing, path, strerror(errno));
}

realm_status file_map_open(file_map *map, const char *path, realm_error *error)
{
    *map = (file_map){.descriptor = -1};
    /* Without O_NONBLOCK a pipe's open would wait for a writer before we can see that it is
     * none. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return fail_errno(error, path, "open");
    realm_status status = REALM_OK;
    struct stat info;
    if (fstat(descriptor, &info) != 0) {
        status = fail_errno(error, path, "examine");
    } else if (!S_ISREG(info.st_mode)) {
        status = realm_fail(error, REALM_INVALID, "'%s' is not a regular file", path);
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (data == MAP_FAILED) {
            status = fail_errno(error, path, "map");
        } else {
            map->data = data;
            map->size = (size_t)info.st_size;
        }
    }
    if (status)
        close(descriptor);
    else
        map->descriptor = descriptor;
    return status;
}

void file_map_close(file_map *map)
{
    if (map->data)
        munmap((void *)map->data, map->size);
    if (map->descriptor >= 0)
        close(map->descriptor);
    *map = (file_map){.descriptor = -1};
}

realm_status file_read(arena *a, const char *path, size_t limit, char **data, size_t *size,
                       realm_error *error)
{
    FILE *stream = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!stream)
        return fail_errno(error, path, "open");
    realm_status status = REALM_OK;
    size_t room = 4096, used = 0;
    char *bytes = malloc(room + 1);
    if (!bytes) {
        status = realm_fail_memory(error, room, path);
        goto out;
    }
    for (;;) {
        size_t got = fread(bytes + used, 1, room - used, stream);
        used += got;
        if (used > limit) {
            status = realm_fail(error, REALM_TOO_LARGE, "'%s' is larger than %zu bytes", path,
                                limit);
            goto out;
        }
        if (used < room) {
            if (ferror(stream)) {
                status = fail_errno(error, path, "read");
                goto out;
            }
            break;
        }
        char *more = realloc(bytes, room * 2 + 1);
        if (!more) {
            status = realm_fail_memory(error, room * 2, path);
            goto out;
        }
        bytes = more;
        room *= 2;
    }
    *data = arena_copy(a, bytes, used);
    *size = used;
    if (!*data)
        status = realm_fail_memory(error, used, path);
out:
    free(bytes);
    if (stream != stdin)
        fclose(stream);
    return status;
}

/* ---- writing -------------------------------------------------------------------------------- */

/* Not mkstemp: that makes files which only their owner can read, whatever the umask. */
realm_status file_writer_open(file_writer *w, const char *path, int mode, realm_error *error)
{
    w->path = path;
    w->descriptor = -1;
    for (int attempt = 0; attempt < 100; attempt++) {
        uint64_t number = 0;
        if (getentropy(&number, sizeof number) != 0)
            return fail_errno(error, path, "name a temporary file for");
        int length = snprintf(w->temporary, sizeof w->temporary, "%s.tmp-%016" PRIx64, path,
                              number);
        if (length < 0 || (size_t)length >= sizeof w->temporary)
            return realm_fail(error, REALM_INVALID, "the path '%s' is too long", path);
        w->descriptor = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (w->descriptor >= 0)
            return REALM_OK;
        if (errno != EEXIST)
            break;
    }
    return fail_errno(error, w->temporary, "create");
}

realm_status file_writer_put(file_writer *w, uint64_t offset, const void *data, size_t size,
                             realm_error *error)
{
    for (size_t done = 0; done < size;) {
        ssize_t written = pwrite(w->descriptor, (const char *)data + done, size - done,
                                 (off_t)(offset + done));
        if (written < 0 && errno != EINTR)
            return fail_errno(error, w->temporary, "write");
        if (written > 0)
            done += (size_t)written;
    }
    return REALM_OK;
}

void file_writer_abandon(file_writer *w)
{
    if (w->descriptor < 0)
        return;
    close(w->descriptor);
    w->descriptor = -1;
    unlink(w->temporary);
}

/* The rename itself survives a power cut only when the folder is flushed too. Some file systems
 * cannot; the content is whole either way. */
static void flush_folder_of(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
}

realm_status file_writer_commit(file_writer *w, realm_error *error)
{
    realm_status status = REALM_OK;
    if (fsync(w->descriptor) != 0)
        status = fail_errno(error, w->temporary, "flush");
    else if (rename(w->temporary, w->path) != 0)
        status = fail_errno(error, w->path, "replace");
    if (status) {
        file_writer_abandon(w);
        return status;
    }
    close(w->descriptor);
    w->descriptor = -1;
    flush_folder_of(w->path);
    return REALM_OK;
}

realm_status file_write(const char *path, const void *data, size_t size, realm_error *error)
{
    file_writer w;
    realm_status status = file_writer_open(&w, path, 0666, error);
    if (status)
        return status;
    status = file_writer_put(&w, 0, data, size, error);
    if (status)
        file_writer_abandon(&w);
    else
        status = file_writer_commit(&w, error);
    return status;
}

realm_status file_make_folders(const char *path, realm_error *error)
{
    char part[4096];
    size_t length = strlen(path);
    if (length >= sizeof part)
        return realm_fail(error, REALM_INVALID, "the path '%s' is too long", path);
    memcpy(part, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (part[i] != '/' && part[i] != 0)
            continue;
        char kept = part[i];
        part[i] = 0;
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return fail_errno(error, part, "make folder");
        part[i] = kept;
    }
    struct stat info;
    if (length && stat(path, &info) != 0)
        return fail_errno(error, path, "examine");
    if (length && !S_ISDIR(info.st_mode))
        return realm_fail(error, REALM_INVALID, "'%s' is not a folder", path);
    return REALM_OK;
}

realm_status file_cache_path(char *path, size_t path_size, const char *leaf, realm_error *error)
{
    const char *own = getenv("REALM_CACHE");
    const char *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int length;
    if (own && *own)
        length = snprintf(path, path_size, "%s/%s", own, leaf);
    else if (xdg && *xdg)
        length = snprintf(path, path_size, "%s/realm/%s", xdg, leaf);
    else if (home && *home)
        length = snprintf(path, path_size, "%s/.cache/realm/%s", home, leaf);
    else
        return realm_fail(error, REALM_NOT_FOUND,
                          "no cache folder: set REALM_CACHE, XDG_CACHE_HOME or HOME");
    if (length < 0 || (size_t)length >= path_size)
        return realm_fail(error, REALM_INVALID, "the cache folder's path is too long");
    char *slash = strrchr(path, '/');
    *slash = 0;
    realm_status status = file_make_folders(path, error);
    *slash = '/';
    return status;
}
