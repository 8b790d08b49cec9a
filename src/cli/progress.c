/* cli/progress.c: see progress.h. */
#include "cli/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

#define SHOW_AFTER_NS 1000000000u
#define REDRAW_NS     100000000u
#define BAR_COLUMNS   30

void progress_begin(progress *p, const char *what)
{
    *p = (progress){.what = what, .start_ns = clock_ns()};
}

void progress_step(void *context, double fraction)
{
    progress *p = context;
    uint64_t now = clock_ns();
    if (!isatty(STDERR_FILENO) || now - p->start_ns < SHOW_AFTER_NS ||
        now - p->drawn_ns < REDRAW_NS)
        return;
    p->drawn_ns = now;
    p->shown = 1;
    int full = (int)(fraction * BAR_COLUMNS + 0.5);
    fprintf(stderr, "\r%s [%.*s%*s] %3.0f %%", p->what, full, "##############################",
            BAR_COLUMNS - full, "", fraction * 100);
}

void progress_end(progress *p)
{
    if (p->shown)
        fprintf(stderr, "\r\033[K");
}
