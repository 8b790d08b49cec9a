/* engine/errand.c: see errand.h. */
#include "engine/errand.h"

#include <sched.h>

#include "base/spin.h"

#define SPINS_ALONE 4096 /* some ten microseconds, which a piece takes at most as a rule */

void errand_recall(errand_slot *s)
{
    atomic_store(&s->offered, NULL);
    for (int i = 0; atomic_load(&s->running); i++) {
        spin_pause();
        if (i > SPINS_ALONE) /* the engine's thread may need this very core */
            sched_yield();
    }
}
