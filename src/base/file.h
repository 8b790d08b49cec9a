/* base/file.h: files as Realm uses them: mapped whole for reading, written whole by renaming,
 * and the folders they live in. Any thread; no state. */
#ifndef REALM_BASE_FILE_H
#define REALM_BASE_FILE_H

#include "base/arena.h"

/* A file mapped read-only and shared. The mapping stays valid after the file is unlinked or
 * renamed over; truncating it under us raises SIGBUS, as for every mapped file. */
typedef struct file_map {
    const uint8_t *data; /* NULL when size is 0 */
    size_t size;
    int descriptor; /* kept open: a guest's memory maps the same pages */
} file_map;

/*   REALM_OK         *map is the file's content, released with file_map_close
 *   REALM_NOT_FOUND  no such file
 *   REALM_INVALID    a folder or another thing that cannot be mapped
 *   REALM_IO         the system's own reason is in error */
realm_status file_map_open(file_map *map, const char *path, realm_error *error);
void file_map_close(file_map *map);

/* Reads a small file into the arena, terminated; REALM_TOO_LARGE past limit bytes.
 * path "-" reads standard input. */
realm_status file_read(arena *a, const char *path, size_t limit, char **data, size_t *size,
                       realm_error *error);

/* Writes path as a whole or not at all: a temporary neighbour, fsync, rename. A new file's mode is
 * 0666 less the umask, as any program's. */
realm_status file_write(const char *path, const void *data, size_t size, realm_error *error);

/* A file that is written piece by piece and appears as a whole or not at all. Between open and
 * commit (or abandon) it is a temporary neighbour, PATH.tmp-<random>. */
typedef struct file_writer {
    const char *path; /* borrowed until commit or abandon */
    int descriptor;   /* -1: not open */
    char temporary[4096];
} file_writer;

/* mode is what open(2) gets, less the umask. REALM_NOT_FOUND, REALM_IO, REALM_INVALID. */
realm_status file_writer_open(file_writer *w, const char *path, int mode, realm_error *error);
/* Anywhere in the file, in any order; what is left out is zeros. REALM_IO. */
realm_status file_writer_put(file_writer *w, uint64_t offset, const void *data, size_t size,
                             realm_error *error);
/* Flushes and renames. On failure there is no new file, and what was at the path is still there. */
realm_status file_writer_commit(file_writer *w, realm_error *error);
void file_writer_abandon(file_writer *w);

/* Makes the folder and its parents, for the owner alone (0700 where new). */
realm_status file_make_folders(const char *path, realm_error *error);

/* $REALM_CACHE, or $XDG_CACHE_HOME/realm, or ~/.cache/realm, with "/" and leaf added; the folder
 * that will hold leaf exists on success. Written to path. */
realm_status file_cache_path(char *path, size_t path_size, const char *leaf, realm_error *error);

#endif
