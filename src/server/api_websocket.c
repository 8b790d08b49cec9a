/* server/api_websocket.c: GET /v1/ws: the handshake of RFC 6455, from where the exchange is a tunnel of the codec
 * realm.v1 (codec_websocket.h).
 *
 * The credential comes in Authorization, or, from browsers, which cannot set headers, as a subprotocol realm.key.<key>
 * beside realm.v1, or in the first message. Never in the URL: URLs are what servers, proxies and browsers write down.
 *
 * A page of any site may open a WebSocket to any host, and unlike with `fetch` read what comes back. Where a key is
 * needed the key decides, because no browser adds it by itself. Where none is, only pages of this machine may: the
 * name in Origin has to be one that no other site can have. Net thread. */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/codec_websocket.h"
#include "server/cors.h"
#include "server/router.h"

#define KEY_PREFIX "realm.key."
#define GUID       "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define KEY_SIZE   24 /* base64 of 16 bytes */

/* All values of a header as one list (RFC 9110, 5.3); NULL: there is none. */
static const char *all_values(exchange *x, const char *name)
{
    const char *all = NULL;
    for (size_t i = 0; i < x->n_headers; i++) {
        if (strcmp(x->headers[i].name, name) != 0)
            continue;
        const char *value = x->headers[i].value;
        all = all ? arena_printf(&x->memory, "%s,%s", all, value) : value;
        if (!all)
            return "";
    }
    return all;
}

static int refuse(exchange *x, int status, const char *code, const char *param,
                  const char *sentence)
{
    api_problem problem;
    api_problem_set(&problem, status, "invalid_request_error", code, param, "%s", sentence);
    api_reply_problem(x, &problem);
    return 0;
}

static int is_key(const char *key)
{
    uint8_t bytes[KEY_SIZE];
    return key && strlen(key) == KEY_SIZE && strcmp(key + KEY_SIZE - 2, "==") == 0 &&
           EVP_DecodeBlock(bytes, (const uint8_t *)key, KEY_SIZE) > 0;
}

/* HTTP/2 has no key: extended CONNECT proves by itself that both sides mean it (RFC 8441, 5.1). */
static int check_handshake(exchange *x)
{
    const char *version = exchange_header_get(x, "sec-websocket-version");
    int needs_key = strncmp(x->protocol, "HTTP/1", 6) == 0;
    if (!x->upgrade) {
        exchange_set(x, "upgrade", "websocket");
        exchange_set(x, "connection", "Upgrade");
        exchange_set(x, "sec-websocket-version", "13");
        return refuse(x, 426, "upgrade_required", "",
                      "here is a WebSocket, for a client that upgrades");
    }
    if (!version || strcmp(version, "13") != 0) {
        exchange_set(x, "sec-websocket-version", "13");
        return refuse(x, 426, "upgrade_required", "sec-websocket-version",
                      "version 13 of WebSocket is spoken here");
    }
    if (needs_key && !is_key(all_values(x, "sec-websocket-key")))
        return refuse(x, 400, "invalid_value", "sec-websocket-key",
                      "'sec-websocket-key' must be 16 bytes in base64");
    return 1;
}

/* ---- who asks ---- */

typedef struct protocols {
    int offered, has_ours;
    char *key; /* in the exchange's memory; NULL: none */
} protocols;

static void read_protocols(exchange *x, protocols *out)
{
    const char *list = all_values(x, "sec-websocket-protocol");
    *out = (protocols){.offered = list != NULL};
    for (const char *at = list ? list : ""; *at;) {
        at += strspn(at, ", \t");
        size_t size = strcspn(at, ", \t");
        if (size == strlen(CODEC_WEBSOCKET_PROTOCOL) &&
            memcmp(at, CODEC_WEBSOCKET_PROTOCOL, size) == 0)
            out->has_ours = 1;
        if (size > strlen(KEY_PREFIX) && memcmp(at, KEY_PREFIX, strlen(KEY_PREFIX)) == 0)
            out->key = arena_copy(&x->memory, at + strlen(KEY_PREFIX), size - strlen(KEY_PREFIX));
        at += size;
    }
}

/* 0: it has been answered. *authorization NULL: there is none; *is_known 0: the first message has to bring one. */
static int identify(server *s, exchange *x, const protocols *offered, const char **authorization,
                    int *is_known)
{
    const char *value = exchange_header_get(x, "authorization");
    if (!value && offered->key)
        value = arena_printf(&x->memory, "Bearer %s", offered->key);
    int needs_key = s->gate->table->has_credentials(s->gate);
    *authorization = value;
    *is_known = value || !needs_key;
    if (*is_known) {
        caller c = {0};
        api_problem problem = {0};
        router_identify(s, x, value, ACCESS_CALLER, &c, &problem);
        if (c.scopes)
            s->gate->table->forget(s->gate, &c);
        if (problem.status) {
            api_reply_problem(x, &problem);
            return 0;
        }
    }
    const char *origin = exchange_header_get(x, "origin");
    if (origin && !needs_key && !cors_is_of_this_machine(origin))
        return refuse(x, 403, "permission_denied", "origin",
                      "a server without keys is for pages of this machine alone");
    return 1;
}

/* ---- the answer ---- */

static int set_accept(exchange *x)
{
    const char *key = exchange_header_get(x, "sec-websocket-key");
    uint8_t digest[EVP_MAX_MD_SIZE];
    char text[64];
    unsigned size;
    if (!key)
        return 1;
    const char *both = arena_printf(&x->memory, "%s" GUID, key);
    if (!both || !EVP_Digest(both, strlen(both), digest, &size, EVP_sha1(), NULL))
        return 0;
    EVP_EncodeBlock((uint8_t *)text, digest, (int)size);
    exchange_set(x, "sec-websocket-accept", text);
    return 1;
}

void api_websocket(server *s, exchange *x, const caller *c)
{
    (void)c; /* see identify */
    protocols offered;
    if (!check_handshake(x))
        return;
    read_protocols(x, &offered);
    if (offered.offered && !offered.has_ours) {
        refuse(x, 400, "invalid_value", "sec-websocket-protocol",
               "the subprotocol spoken here is " CODEC_WEBSOCKET_PROTOCOL);
        return;
    }
    codec_websocket_options options = {
        .common = {.sink = &s->sink, .limits = {.message_bytes = s->options.max_body_bytes}},
        .authority = x->authority,
        .traceparent = exchange_header_get(x, "traceparent")};
    if (!identify(s, x, &offered, &options.authorization, &options.is_known))
        return;
    if (net_is_draining(s->net)) {
        exchange_set(x, "retry-after", "1");
        refuse(x, 503, "draining", "", "the server is shutting down; try again");
        return;
    }
    char extensions[160];
    if (websocket_deflate_agree(&options.deflate, all_values(x, "sec-websocket-extensions"),
                                extensions, sizeof extensions))
        exchange_set(x, "sec-websocket-extensions", extensions);
    if (offered.has_ours)
        exchange_set(x, "sec-websocket-protocol", CODEC_WEBSOCKET_PROTOCOL);
    codec *inner = set_accept(x) ? codec_websocket_open(&options) : NULL;
    if (inner)
        exchange_tunnel(x, inner);
    else
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
}
