/* base/spin.h: what a thread does that looks again and again. */
#ifndef REALM_BASE_SPIN_H
#define REALM_BASE_SPIN_H

/* Some dozen cycles in which the core's other hardware thread may have its units. */
static inline void spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is over at once on most processors */
#endif
}

#endif
