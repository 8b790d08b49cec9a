/* server/tool_calls.h: how models write the calls of tools, and how OpenAI's clients read them.
 *
 * Which style a model was trained on shows in its chat template. A call that was forced (tool_choice) needs
 * no looking for: the prompt already ends with what opens a call, and a JSON schema holds the model to the
 * rest. Pure functions; any thread. */
#ifndef REALM_SERVER_TOOL_CALLS_H
#define REALM_SERVER_TOOL_CALLS_H

#include "formats/json.h"
#include "server/router.h"

/* Of a chat template's text. TOOLS_NONE: it does not take tools. */
tool_style tool_calls_style(const char *template_text, size_t size);

/* Bytes of an answer so far that are surely text for the user: what may be the beginning of a call is held
 * back until more comes, or the end. */
size_t tool_calls_plain(tool_style style, const char *text, size_t size);

/* The calls in an answer as OpenAI's list, from byte *plain on, or NULL if there are none: then all of it is
 * text. forced: the whole text is one call. id_seed makes the calls' ids. The caller's to json_decref. */
json_t *tool_calls_parse(tool_style style, const char *text, size_t size, int forced,
                         const char *id_seed, size_t *plain);

/* What a forced call must look like, as a JSON schema, and what to put behind the prompt. tools: OpenAI's
 * list, checked; name NULL: any of them. The caller's to json_decref. */
json_t *tool_calls_schema(tool_style style, const json_t *tools, const char *name);
const char *tool_calls_opening(tool_style style);

#endif
