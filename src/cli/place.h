/* cli/place.h: where the commands about tenants do their work: in a data folder, or at a running server.
 *
 * A folder's files can be worked on whether a server runs on them or not: SQLite keeps both apart, and the server
 * notices the change within a quarter of a second. A server is asked over its admin API (docs/API.md); its key
 * comes from $REALM_KEY or a file, because arguments can be read by everybody on the machine. Both answer with the
 * same JSON (tenancy/manage.h), so a command prints one thing. Main thread. */
#ifndef REALM_CLI_PLACE_H
#define REALM_CLI_PLACE_H

#include "cli/options.h"
#include "tenancy/manage.h"

typedef struct place {
    const char *data, *server, *key_file, *ca_file; /* of the command line */
    tenant_store *store;                            /* open, unless server is given */
    char key[256];
} place;

/* The rows of every command's table. */
#define PLACE_N_OPTIONS 4
#define PLACE_OPTIONS(p)                                                                           \
    {.name = "data",                                                                               \
     .letter = 'd',                                                                                \
     .kind = OPTION_TEXT,                                                                          \
     .out = &(p).data,                                                                             \
     .value = "DIR",                                                                               \
     .help = "the data folder; else $REALM_DATA, else realm in $XDG_DATA_HOME or ~/.local/share"}, \
        {.name = "server",                                                                         \
         .kind = OPTION_TEXT,                                                                      \
         .out = &(p).server,                                                                       \
         .value = "URL",                                                                           \
         .help = "ask this server instead, with the key in $REALM_KEY"},                           \
        {.name = "key-file",                                                                       \
         .kind = OPTION_TEXT,                                                                      \
         .out = &(p).key_file,                                                                     \
         .value = "FILE",                                                                          \
         .help = "with --server: the key is in this file"},                                        \
    {                                                                                              \
        .name = "ca", .kind = OPTION_TEXT, .out = &(p).ca_file, .value = "FILE",                   \
        .help = "with --server: whom to trust for certificates (PEM; default: the system's)"       \
    }

/* With make, a folder is made if it is not there; else REALM_NOT_FOUND says how to make it.
 *   REALM_INVALID  --server without a key, or over http to another machine */
realm_status place_open(place *p, int make, realm_error *error);
void place_close(place *p);

/* One call of the admin API. */
typedef struct place_call {
    const char *method;
    const char *parts[8]; /* of the path behind /admin/v1/, escaped here; NULL ends them */
    const char
        *query[12]
              [2]; /* name and value; those without a value are left out, a NULL name ends them */
    const json_t *json; /* the body; borrowed */
    const void *bytes;  /* or this */
    size_t size;
} place_call;

/* The answer's JSON; the caller's to json_decref.
 *   the status and the sentence that the server gave; REALM_IO if it cannot be reached */
realm_status place_ask(const place *p, const place_call *c, json_t **answer, realm_error *error);
/* All items of a list, page by page, as one array. The last row of c->query is ours. */
realm_status place_ask_list(const place *p, const place_call *c, json_t **answer,
                            realm_error *error);
/* All rows of usage, page by page, as manage_usage writes them. */
realm_status place_usage(const place *p, const manage_usage_query *q, FILE *out,
                         realm_error *error);

#endif
