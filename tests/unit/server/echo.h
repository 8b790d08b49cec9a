/* tests/unit/server/echo.h: a sink for codecs under test: it answers each request with a line that says what
 * arrived, and counts. One thread. */
#ifndef REALM_TESTS_SERVER_ECHO_H
#define REALM_TESTS_SERVER_ECHO_H

#include "server/codec.h"

typedef struct echo {
    exchange_sink sink;
    size_t body_limit;
    int holds;      /* 1: exchanges are kept instead of answered */
    exchange *held; /* the last one */
    int early; /* 1: answers with the head, repeats the body as it comes, and ends at a '.' or its end */
    int heads, completes, overs, cancels;
    char last[4096]; /* "METHOD path?query n_headers body_size" of the last complete request */
} echo;

void echo_init(echo *e);
codec *echo_open(echo *e, const codec_table *table);
/* Answers the exchange that was held. */
void echo_answer(exchange *x);

#endif
