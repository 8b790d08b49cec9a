/* text/chat_template.h: a model's own Jinja text, rendered as Hugging Face's apply_chat_template
 * renders it. Stateless; any thread. The template and the messages are hostile: rendering has a
 * fuel and an output limit. */
#ifndef REALM_TEXT_CHAT_TEMPLATE_H
#define REALM_TEXT_CHAT_TEMPLATE_H

#include "base/buffer.h"
#include "formats/gguf.h"
#include "text/tokenizer.h"

/* The file's tokenizer.chat_template (or the named one: tokenizer.chat_template.NAME).
 * REALM_NOT_FOUND if the model has none. */
realm_status chat_template_find(const gguf *g, const char *name, gguf_string *text,
                                realm_error *error);

/* request_json is {"messages":[...],"tools":[...]?,"add_generation_prompt":bool?,...} or a bare
 * list of messages; every other key of it reaches the template. bos_token and eos_token come from
 * t (may be NULL: then they are empty). add_generation_prompt is true if not given.
 *   REALM_INVALID    request_json is not JSON of that shape, or the template raised an exception:
 *                    the sentence is the template's own
 *   REALM_CORRUPT    the template does not parse; line and reason */
realm_status chat_template_render(gguf_string template_text, const tokenizer *t,
                                  const char *request_json, size_t request_size, buffer *out,
                                  realm_error *error);

#endif
