/* server/websocket_deflate.c: see websocket_deflate.h. */
#include "server/websocket_deflate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SERVER_BITS 12 /* deflate takes 4 << bits bytes for it */
#define CLIENT_BITS 11
#define MEMORY      5 /* of deflate's hash tables: 512 << it bytes */
#define LEVEL       3 /* deltas are short: more effort finds nothing more */
#define PIECE       ((size_t)16 << 10)

/* ---- agreeing ---- */

/* One parameter of an offer; both are "" where there is none. */
typedef struct parameter {
    char name[40], value[8];
    int has_value;
} parameter;

static const char *skip_blanks(const char *at)
{
    return at + strspn(at, " \t");
}

/* Reads "name" or "name=value", value perhaps in quotes; returns what follows, NULL: it is malformed or too long. */
static const char *read_parameter(const char *at, parameter *out)
{
    *out = (parameter){0};
    at = skip_blanks(at);
    size_t size = strcspn(at, " \t=;,");
    if (!size || size >= sizeof out->name)
        return NULL;
    memcpy(out->name, at, size);
    at = skip_blanks(at + size);
    if (*at != '=')
        return at;
    at = skip_blanks(at + 1);
    int quoted = *at == '"';
    at += quoted;
    size = strcspn(at, quoted ? "\"" : " \t;,");
    if (!size || size >= sizeof out->value || (quoted && at[size] != '"'))
        return NULL;
    memcpy(out->value, at, size);
    out->has_value = 1;
    return skip_blanks(at + size + (size_t)quoted);
}

/* 8 to 15 without a leading zero; 0: it is not. */
static int bits_of(const parameter *p)
{
    static const char *const names[] = {"8", "9", "10", "11", "12", "13", "14", "15"};
    for (int i = 0; i < 8; i++)
        if (strcmp(p->value, names[i]) == 0)
            return 8 + i;
    return 0;
}

typedef struct offer {
    int server_bits, client_bits; /* 0: not said */
    int can_limit;                /* client_max_window_bits is there: the client can be told */
    int server_forgets, client_forgets;
} offer;

/* 0: unknown, twice or malformed, so that the offer has to be declined (RFC 7692, 7.1). */
static int take_parameter(offer *o, const parameter *p)
{
    int bits = bits_of(p);
    if (p->has_value && !bits)
        return 0;
    if (strcasecmp(p->name, "server_no_context_takeover") == 0)
        return !p->has_value && !o->server_forgets++;
    if (strcasecmp(p->name, "client_no_context_takeover") == 0)
        return !p->has_value && !o->client_forgets++;
    if (strcasecmp(p->name, "server_max_window_bits") == 0 && bits && !o->server_bits) {
        o->server_bits = bits;
        return bits > 8; /* zlib cannot compress with so small a window */
    }
    if (strcasecmp(p->name, "client_max_window_bits") == 0 && !o->can_limit++) {
        o->client_bits = bits;
        return 1;
    }
    return 0;
}

/* Reads one offer up to the next comma; *ok says whether it can be kept. */
static const char *read_offer(const char *at, offer *o, int *ok)
{
    parameter p;
    *o = (offer){0};
    at = read_parameter(at, &p);
    *ok = at && !p.has_value && strcasecmp(p.name, "permessage-deflate") == 0;
    while (at && *at == ';') {
        at = read_parameter(at + 1, &p);
        *ok &= at && take_parameter(o, &p);
    }
    if (at && *at && *at != ',')
        at = NULL;
    *ok &= at != NULL;
    return at;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static void accept_offer(websocket_deflate_terms *out, const offer *o, char *answer, size_t size)
{
    int server_bits = o->server_bits ? least(o->server_bits, SERVER_BITS) : SERVER_BITS;
    int client_bits = o->client_bits ? least(o->client_bits, CLIENT_BITS) : CLIENT_BITS;
    *out = (websocket_deflate_terms){.agreed = 1,
                                     .server_bits = server_bits,
                                     .client_bits = o->can_limit ? client_bits : 15,
                                     .server_forgets = o->server_forgets != 0,
                                     .client_forgets = o->client_forgets || !o->can_limit};
    int n = snprintf(answer, size, "permessage-deflate%s%s",
                     out->server_forgets ? "; server_no_context_takeover" : "",
                     out->client_forgets ? "; client_no_context_takeover" : "");
    if (o->server_bits)
        n += snprintf(answer + n, size - (size_t)n, "; server_max_window_bits=%d", server_bits);
    if (o->can_limit)
        snprintf(answer + n, size - (size_t)n, "; client_max_window_bits=%d", client_bits);
}

int websocket_deflate_agree(websocket_deflate_terms *out, const char *offers, char *answer,
                            size_t answer_size)
{
    *out = (websocket_deflate_terms){0};
    for (const char *at = offers; at && *at;) {
        offer o;
        int ok;
        at = read_offer(at, &o, &ok);
        if (ok) {
            accept_offer(out, &o, answer, answer_size);
            return 1;
        }
        at = at && *at == ',' ? at + 1 : at;
    }
    return 0;
}

/* ---- messages ---- */

void websocket_deflate_init(websocket_deflate *d, const websocket_deflate_terms *terms)
{
    *d = (websocket_deflate){.terms = *terms};
}

static void drop_in(websocket_deflate *d)
{
    if (d->in)
        inflateEnd(d->in);
    free(d->in);
    d->in = NULL;
}

void websocket_deflate_rest(websocket_deflate *d)
{
    if (d->out)
        deflateEnd(d->out);
    free(d->out);
    d->out = NULL;
}

void websocket_deflate_release(websocket_deflate *d)
{
    drop_in(d);
    websocket_deflate_rest(d);
}

static int open_in(websocket_deflate *d)
{
    if (d->in)
        return 1;
    d->in = calloc(1, sizeof *d->in);
    /* zlib's own compressor makes windows of 512 bytes where it is asked for 256 */
    int bits = d->terms.client_bits < 9 ? 9 : d->terms.client_bits;
    if (d->in && inflateInit2(d->in, -bits) == Z_OK)
        return 1;
    free(d->in);
    d->in = NULL;
    return 0;
}

/* A block that says it is the last one may be followed by more (RFC 7692, 7.2.3.4): zlib begins a new stream, with
 * the window of the old one. */
static int begin_again(z_stream *in)
{
    Bytef *window = malloc((size_t)1 << MAX_WBITS);
    uInt size = 0;
    int code = window ? inflateGetDictionary(in, window, &size) : Z_MEM_ERROR;
    if (code == Z_OK)
        code = inflateReset(in);
    if (code == Z_OK && size)
        code = inflateSetDictionary(in, window, size);
    free(window);
    return code;
}

static realm_status inflate_part(z_stream *in, const void *data, size_t size, buffer *out,
                                 size_t most)
{
    char piece[PIECE];
    in->next_in = (Bytef *)(uintptr_t)data;
    in->avail_in = (uInt)size;
    for (;;) {
        in->next_out = (Bytef *)piece;
        in->avail_out = sizeof piece;
        int code = inflate(in, Z_SYNC_FLUSH);
        size_t got = sizeof piece - in->avail_out;
        if (got > most - out->size)
            return REALM_TOO_LARGE;
        if (buffer_add(out, piece, got))
            return REALM_NO_MEMORY;
        if (code == Z_STREAM_END)
            code = begin_again(in);
        if (code == Z_MEM_ERROR)
            return REALM_NO_MEMORY;
        if (code != Z_OK && code != Z_BUF_ERROR)
            return REALM_CORRUPT;
        if (!in->avail_in && in->avail_out)
            return REALM_OK;
        if (code == Z_BUF_ERROR && !got)
            return REALM_CORRUPT;
    }
}

realm_status websocket_deflate_inflate(websocket_deflate *d, const void *data, size_t size,
                                       int at_end, buffer *out, size_t most)
{
    if (!open_in(d))
        return REALM_NO_MEMORY;
    realm_status status = out->size > most ? REALM_TOO_LARGE : REALM_OK;
    if (!status && size)
        status = inflate_part(d->in, data, size, out, most);
    if (!status && at_end) /* what the sender cut off */
        status = inflate_part(d->in, "\0\0\xff\xff", 4, out, most);
    if (status || (at_end && d->terms.client_forgets))
        drop_in(d);
    return status;
}

static int open_out(websocket_deflate *d)
{
    if (d->out)
        return 1;
    d->out = calloc(1, sizeof *d->out);
    if (d->out && deflateInit2(d->out, LEVEL, Z_DEFLATED, -d->terms.server_bits, MEMORY,
                               Z_DEFAULT_STRATEGY) == Z_OK)
        return 1;
    free(d->out);
    d->out = NULL;
    return 0;
}

realm_status websocket_deflate_deflate(websocket_deflate *d, const void *data, size_t size,
                                       buffer *out)
{
    if (!open_out(d))
        return REALM_NO_MEMORY;
    char piece[PIECE];
    size_t before = out->size;
    d->out->next_in = (Bytef *)(uintptr_t)data;
    d->out->avail_in = (uInt)size;
    do {
        d->out->next_out = (Bytef *)piece;
        d->out->avail_out = sizeof piece;
        deflate(d->out, Z_SYNC_FLUSH);
        if (buffer_add(out, piece, sizeof piece - d->out->avail_out)) {
            out->size = before;
            websocket_deflate_rest(d);
            return REALM_NO_MEMORY;
        }
    } while (!d->out->avail_out);
    out->size -= 4; /* 00 00 ff ff: the receiver adds it again */
    if (d->terms.server_forgets)
        websocket_deflate_rest(d);
    return REALM_OK;
}
