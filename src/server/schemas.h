/* server/schemas.h: JSON schemas of clients, as an answer is held to them.
 *
 * A schema that lists an object's properties and says nothing of others allows any others too, and a model that is held
 * to that may go on inventing some until its tokens are spent. Who lists properties means those: OpenAI's strict schemas
 * must say so, llama.cpp takes it so. Pure; any thread. */
#ifndef REALM_SERVER_SCHEMAS_H
#define REALM_SERVER_SCHEMAS_H

#include "formats/json.h"

/* Closes each object that lists its properties and leaves open whether there are others. What fits the closed schema
 * fits the one that was sent. A schema that puts objects together (allOf, or properties beside anyOf, oneOf or $ref) is
 * left as it is: closed parts of those would exclude each other. */
void schemas_close(json_t *schema);

#endif
