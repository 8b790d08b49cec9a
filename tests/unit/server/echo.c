/* tests/unit/server/echo.c: see echo.h. */
#include "unit/server/echo.h"

#include <stdio.h>
#include <string.h>

static void repeat(exchange *x, const void *data, size_t size)
{
    exchange_write(x, data, size);
    if (!data || memchr(data, '.', size))
        exchange_end(x);
}

static void on_head(void *context, exchange *x)
{
    echo *e = context;
    e->heads++;
    x->body_limit = e->body_limit;
    if (e->early)
        x->on_body = repeat;
}

static void on_cancel(exchange *x)
{
    ((echo *)x->context)->cancels++;
}

void echo_answer(exchange *x)
{
    char text[256];
    int size = snprintf(text, sizeof text, "%s %s %zu", x->method, x->path, x->body.size);
    exchange_reply(x, 200, "text/plain", text, (size_t)size);
}

static void on_complete(void *context, exchange *x)
{
    echo *e = context;
    exchange_assert(x);
    e->completes++;
    x->context = e;
    x->on_cancel = on_cancel;
    snprintf(e->last, sizeof e->last, "%s %s?%s %zu %zu", x->method, x->path, x->query,
             x->n_headers, x->body.size);
    if (e->early)
        exchange_begin(x, 200, -1);
    else if (e->holds)
        e->held = x;
    else
        echo_answer(x);
}

static void on_over(void *context, exchange *x)
{
    echo *e = context;
    e->overs++;
    if (e->held == x)
        e->held = NULL;
}

void echo_init(echo *e)
{
    *e = (echo){.body_limit = 1000};
    e->sink = (exchange_sink){e, on_head, on_complete, on_over};
}

codec *echo_open(echo *e, const codec_table *table)
{
    const codec_options options = {.sink = &e->sink};
    return table->open(&options);
}
