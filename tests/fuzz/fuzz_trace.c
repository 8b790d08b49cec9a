/* tests/fuzz/fuzz_trace.c: hostile `traceparent` and `tracestate` headers.
 *
 * Each line of the input is a header: "p..." a traceparent, "s..." a tracestate, what begins otherwise another one. What is
 * read must be fit to be passed on: an id of its form, a state that is printable, short, and reads as itself again. A
 * trace is taken over only from a single traceparent, and then as it stands there. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "server/exchange.h"

#define MAX_BYTES 65536

static size_t read_lines(char *text, exchange_header *headers)
{
    size_t count = 0;
    char *rest;
    for (char *line = strtok_r(text, "\n", &rest); line && count < EXCHANGE_MAX_HEADERS;
         line = strtok_r(NULL, "\n", &rest))
        headers[count++] = (exchange_header){*line == 'p'   ? "traceparent"
                                             : *line == 's' ? "tracestate"
                                                            : "other",
                                             *line == 'p' || *line == 's' ? line + 1 : line};
    return count;
}

static void check_parent(const exchange_header *headers, size_t count)
{
    trace_context trace;
    char parent[17];
    const char *only = NULL;
    int n_parents = 0;
    trace_read(&trace, headers, count);
    promise(strlen(trace.id) == TRACE_ID_SIZE &&
                strspn(trace.id, "0123456789abcdef") == TRACE_ID_SIZE &&
                strspn(trace.id, "0") < TRACE_ID_SIZE,
            "there is an id");
    promise(!(trace.flags & ~(TRACE_SAMPLED | TRACE_RANDOM)), "only flags that are known");
    for (size_t i = 0; i < count; i++)
        if (strcmp(headers[i].name, "traceparent") == 0) {
            only = headers[i].value;
            n_parents++;
        }
    if (!trace.parent) {
        promise(trace.flags == TRACE_RANDOM, "a trace that begins here is nobody's decision");
        return;
    }
    promise(n_parents == 1, "of several callers none is believed");
    snprintf(parent, sizeof parent, "%016llx", (unsigned long long)trace.parent);
    promise(strlen(only) >= 55 && memcmp(only + 3, trace.id, TRACE_ID_SIZE) == 0 &&
                memcmp(only + 36, parent, 16) == 0,
            "what is taken over is what was sent");
}

static void check_state(const exchange_header *headers, size_t count)
{
    arena memory;
    arena_init(&memory, 0);
    const char *state = trace_read_state(headers, count, &memory);
    size_t size = strlen(state);
    promise(size <= TRACE_STATE_SIZE, "a state is short");
    for (size_t i = 0; i < size; i++)
        promise(state[i] >= 0x20 && state[i] <= 0x7e, "a state is printable");
    const exchange_header again = {"tracestate", state};
    promise(strcmp(trace_read_state(&again, 1, &memory), state) == 0, "a state reads as itself");
    arena_release(&memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exchange_header headers[EXCHANGE_MAX_HEADERS];
    if (size > MAX_BYTES)
        return 0;
    char *text = malloc(size + 1); /* of its own size, so that a step past its end is seen */
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    size_t count = read_lines(text, headers);
    check_parent(headers, count);
    check_state(headers, count);
    free(text);
    return 0;
}
