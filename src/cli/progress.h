/* cli/progress.h: a bar on standard error for what takes over a second; nothing where standard
 * error is no terminal, and nothing for what is quicker. One at a time; one thread. */
#ifndef REALM_CLI_PROGRESS_H
#define REALM_CLI_PROGRESS_H

#include <stdint.h>

typedef struct progress {
    const char *what; /* "loading the model"; borrowed */
    uint64_t start_ns, drawn_ns;
    int shown;
} progress;

void progress_begin(progress *p, const char *what);
/* fraction 0 to 1; context is the progress. */
void progress_step(void *context, double fraction);
/* Wipes the bar. */
void progress_end(progress *p);

#endif
