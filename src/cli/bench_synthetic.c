/* cli/bench_synthetic.c: `realm bench --synthetic`: a model of a real shape, made where it is
 * measured.
 *
 * The file is a temporary one in Realm's cache (which, unlike /tmp, is on a disk), unlinked as soon
 * as it has been made and before its first byte is written: the system frees its space when the
 * last mapping goes, whichever way the process ends. With --synthetic-out it is written under a
 * temporary name beside the wanted one, renamed when it is whole, and removed if a signal comes
 * first. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/bench.h"
#include "cli/progress.h"
#include "model/synthetic.h"

/* ---- the file ------------------------------------------------------------------------------------- */

static const int deadly[] = {SIGINT, SIGTERM, SIGHUP};
#define DEADLY_COUNT (sizeof deadly / sizeof *deadly)

/* The unfinished file of --synthetic-out, for remove_unfinished. */
static char unfinished[BENCH_PATH_SIZE];

static void remove_unfinished(int number)
{
    unlink(unfinished);
    raise(number); /* SA_RESETHAND: it ends the process once this returns */
}

/* What was ignored stays so. */
static void watch_signals(struct sigaction old[DEADLY_COUNT])
{
    struct sigaction action = {.sa_handler = remove_unfinished, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < DEADLY_COUNT; i++) {
        sigaction(deadly[i], NULL, &old[i]);
        if (old[i].sa_handler != SIG_IGN)
            sigaction(deadly[i], &action, NULL);
    }
}

static void leave_signals(const struct sigaction old[DEADLY_COUNT])
{
    for (size_t i = 0; i < DEADLY_COUNT; i++)
        sigaction(deadly[i], &old[i], NULL);
}

/* Makes the file whose name is in `unfinished`, a template; no signal comes between its being there
 * and its being unlinked or watched for. */
static realm_status create(int keep, int *descriptor, struct sigaction old[DEADLY_COUNT],
                           realm_error *error)
{
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    int fd = mkstemp(unfinished);
    int reason = errno;
    if (fd >= 0 && keep)
        watch_signals(old);
    else if (fd >= 0)
        unlink(unfinished);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (fd < 0)
        return realm_fail(error, REALM_IO, "cannot make '%s': %s", unfinished, strerror(reason));
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    *descriptor = fd;
    return REALM_OK;
}

static realm_status check_space(int descriptor, const bench_options *o, uint64_t needed,
                                realm_error *error)
{
    struct statvfs disk;
    if (fstatvfs(descriptor, &disk) != 0)
        return realm_fail(error, REALM_IO, "cannot ask for the free space of '%s': %s", unfinished,
                          strerror(errno));
    uint64_t available = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (available >= needed)
        return REALM_OK;
    return realm_fail(error, REALM_IO,
                      "%s needs %.1f GB, and the disk of '%s' has %.1f GB free; choose a smaller "
                      "one, or another disk with %s",
                      o->synthetic, (double)needed / 1e9, unfinished, (double)available / 1e9,
                      o->synthetic_out ? "--synthetic-out" : "--cache-dir or --synthetic-out");
}

static realm_status fill(const bench_options *o, const synthetic_model *m, int descriptor,
                         realm_error *error)
{
    synthetic_size size;
    realm_status status = synthetic_measure(m, &size, error);
    if (!status)
        status = check_space(descriptor, o, size.file_bytes, error);
    if (status)
        return status;
    progress bar;
    progress_begin(&bar, "making the model");
    status = synthetic_write(m, descriptor, progress_step, &bar, error);
    progress_end(&bar);
    /* Also so that writing to the disk does not go on while something is measured. */
    if (!status && fsync(descriptor) != 0)
        status = realm_fail(error, REALM_IO, "cannot write the model: %s", strerror(errno));
    return status;
}

static realm_status name_file(const bench_options *o, realm_error *error)
{
    char beside[BENCH_PATH_SIZE];
    if (o->synthetic_out && access(o->synthetic_out, F_OK) == 0)
        return realm_fail(error, REALM_INVALID,
                          "'%s' is there already; measure it with --model, or remove it",
                          o->synthetic_out);
    realm_status status = REALM_OK;
    if (o->synthetic_out)
        snprintf(beside, sizeof beside, "%s", o->synthetic_out);
    else if (o->cache_folder) {
        snprintf(beside, sizeof beside, "%s/synthetic", o->cache_folder);
        status = file_make_folders(o->cache_folder, error);
    } else
        status = file_cache_path(beside, sizeof beside, "synthetic", error);
    if (!status &&
        (size_t)snprintf(unfinished, sizeof unfinished, "%s.XXXXXX", beside) >= sizeof unfinished)
        status = realm_fail(error, REALM_INVALID, "the path '%.60s...' is too long", beside);
    return status;
}

realm_status bench_synthetic_make(const bench_options *o, char path[BENCH_PATH_SIZE],
                                  int *descriptor, realm_error *error)
{
    synthetic_model m;
    struct sigaction old[DEADLY_COUNT];
    int keep = o->synthetic_out != NULL;
    realm_status status = synthetic_find(&m, o->synthetic, error);
    if (!status)
        status = name_file(o, error);
    if (!status)
        status = create(keep, descriptor, old, error);
    if (status)
        return status;
    m.seed = (uint64_t)o->seed;
    status = fill(o, &m, *descriptor, error);
    if (!keep) {
        snprintf(path, BENCH_PATH_SIZE, "/proc/self/fd/%d", *descriptor);
        return status;
    }
    if (!status && rename(unfinished, o->synthetic_out) != 0)
        status = realm_fail(error, REALM_IO, "cannot rename '%s' to '%s': %s", unfinished,
                            o->synthetic_out, strerror(errno));
    if (status)
        unlink(unfinished);
    leave_signals(old);
    snprintf(path, BENCH_PATH_SIZE, "%s", o->synthetic_out);
    return status;
}

/* ---- the list ------------------------------------------------------------------------------------- */

realm_status bench_synthetic_list(realm_error *error)
{
    const synthetic_shape *s;
    const synthetic_quantization *q;
    printf("--synthetic SHAPE:QUANTIZATION\n\n%-14s %12s %16s\n", "shape", "parameters",
           "bytes as q4_k_m");
    for (size_t i = 0; (s = synthetic_shape_at(i)) != NULL; i++) {
        synthetic_model m;
        synthetic_size size;
        realm_status status = synthetic_find(&m, s->name, error);
        if (!status)
            status = synthetic_measure(&m, &size, error);
        if (status)
            return status;
        printf("%-14s %10.1f M %13.2f GB\n", s->name, (double)size.parameters / 1e6,
               (double)size.file_bytes / 1e9);
    }
    printf("\nquantizations, all matrices alike:\n ");
    for (size_t i = 0; (q = synthetic_quantization_at(i)) != NULL; i++)
        if (!q->mixed)
            printf(" %s", q->name);
    printf("\nquantizations that give some matrices more bits, as published models have them:\n ");
    for (size_t i = 0; (q = synthetic_quantization_at(i)) != NULL; i++)
        if (q->mixed)
            printf(" %s", q->name);
    printf("\n");
    return REALM_OK;
}
