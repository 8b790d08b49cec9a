/* tests/support/test_device.h: the backend that tests of the rooms above run on: the processor's, or the
 * device that REALM_TEST_DEVICE names, so that one set of tests holds for every backend. "split" is the processor
 * twice, the first layer on one and the others on the other (compute/backend_split.h).
 *
 * With options.reference it is always the processor's scalar reference: what others are compared with. */
#ifndef REALM_TESTS_TEST_DEVICE_H
#define REALM_TESTS_TEST_DEVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/backend_open.h"
#include "compute/backend_split.h"

#define TEST_SKIPPED 77 /* what CTest counts as not run */

static inline const char *test_device(void)
{
    const char *name = getenv("REALM_TEST_DEVICE");
    return name && *name ? name : NULL;
}

static inline realm_status test_device_open_split(backend **out, const backend_cpu_options *cpu,
                                                  realm_error *error)
{
    backend *parts[2] = {NULL, NULL};
    realm_status status = backend_cpu_open(&parts[0], cpu, error);
    if (status == REALM_OK)
        status = backend_cpu_open(&parts[1], cpu, error);
    if (status == REALM_OK)
        status = backend_split_open(out, parts[0], parts[1], 1, error);
    for (int i = 0; i < 2 && status != REALM_OK; i++)
        if (parts[i])
            parts[i]->table->close(parts[i]);
    return status;
}

static inline realm_status test_device_open(backend **out, const backend_cpu_options *cpu,
                                            realm_error *error)
{
    if (!test_device() || (cpu && cpu->reference))
        return backend_cpu_open(out, cpu, error);
    if (strcmp(test_device(), "split") == 0)
        return test_device_open_split(out, cpu, error);
    return backend_open(out, &(backend_options){.device = test_device()}, error);
}

/* 1, with a word why, if the device that was asked for is not there. */
static inline int test_device_missing(void)
{
    backend *b = NULL;
    realm_error error;
    if (test_device_open(&b, NULL, &error) != REALM_OK) {
        printf("skipped: %s\n", error.message);
        return 1;
    }
    b->table->close(b);
    return 0;
}

#endif
