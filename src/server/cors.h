/* server/cors.h: what pages of other origins may do with a server (the Fetch standard's CORS).
 *
 * Nothing here uses cookies: a credential is a header that a page must know and send. So where keys are needed any page
 * may ask and read; without keys only pages of this machine may, since any page that the user visits can reach a
 * server here. Net thread. */
#ifndef REALM_SERVER_CORS_H
#define REALM_SERVER_CORS_H

#include "server/exchange.h"

/* 1 for "http://localhost:3000" and the like: names that stand for this machine alone. */
int cors_is_of_this_machine(const char *origin);

/* Sets what lets the page that asks read the answer, if one asks and it may. Before the answer begins. */
void cors_allow(exchange *x, int needs_key);

/* For the answer to a browser that asks before it asks (OPTIONS); methods as of `allow`. After cors_allow. */
void cors_preflight(exchange *x, const char *methods);

#endif
