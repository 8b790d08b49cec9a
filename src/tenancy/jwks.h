/* tenancy/jwks.h: where the keys for jwt.h come from: a file or a URL, kept fresh.
 *
 * Owns one worker thread, which reads the source at the start, again every refresh_s, and soon after
 * somebody met a token whose kid it does not know (but not more often than every min_refresh_s, so that
 * tokens with invented kids make no traffic). A source that fails keeps the last good keys for as long as
 * max_stale_s and says so in the log. jwks_keys is for any thread and never waits. */
#ifndef REALM_TENANCY_JWKS_H
#define REALM_TENANCY_JWKS_H

#include "tenancy/jwt.h"

typedef struct jwks jwks;

typedef struct jwks_options {
    const char *source;    /* a path, or http:// or https://; copied */
    int hmac;              /* the file is a shared secret */
    int32_t refresh_s;     /* 0: 300 */
    int32_t min_refresh_s; /* 0: 10 */
    int32_t max_stale_s;   /* 0: 86400 */
    int32_t timeout_ms;    /* of a download; 0: 10000 */
    int allow_http; /* 1: http:// to other hosts than this one, where keys can be forged on the way */
    const char *ca_file; /* NULL: the system's */
} jwks_options;

/* A file that cannot be read is an error at once; a URL that cannot is one in the log, and tried again.
 *   REALM_INVALID  the options, or the file's content */
realm_status jwks_open(jwks **out, const jwks_options *options, realm_error *error);
void jwks_close(jwks *j); /* NULL allowed. Joins the thread */

/* The keys now, retained; NULL if there are none (never loaded, or stale). */
jwt_keys *jwks_keys(jwks *j);

/* A token named a key that is not there: look again soon. Never waits. */
void jwks_missed(jwks *j);

#endif
