/* tests/unit/unit.h: what every unit test includes: cmocka and the headers it needs first. A test's
 * name is a sentence that is true; `unit_run` prints and counts them. */
#ifndef REALM_TESTS_UNIT_H
#define REALM_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fail.h"

/* 1 where an emulator runs the tests (RealmTest.cmake), ten to fifty times slower than a processor: what
 * repeats most does it less often there, with the same assertions. */
static inline int unit_is_emulated(void)
{
    return getenv("REALM_TEST_EMULATED") != NULL;
}

/* How long a test waits for what must happen, before it says that it does not: no machine is so slow. */
#define A_MINUTE_NS 60000000000ull

/* Fails with the sentence when a status is not the wanted one. */
#define assert_status(call, wanted, error)                                                         \
    do {                                                                                           \
        realm_status got_ = (call);                                                                \
        if (got_ != (wanted))                                                                      \
            fail_msg("%s, not %s: %s", realm_status_name(got_), realm_status_name(wanted),         \
                     got_ ? (error).message : "no error");                                         \
    } while (0)

/* Fails unless text holds part. */
#define assert_holds(text, part)                                                                   \
    do {                                                                                           \
        if (!strstr((text), (part)))                                                               \
            fail_msg("\"%s\" does not hold \"%s\"", (text), (part));                               \
    } while (0)

#endif
