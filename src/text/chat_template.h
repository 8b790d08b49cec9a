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
 * list of messages; every other key of it reaches the template. As in apply_chat_template, tools and
 * documents are none where absent and add_generation_prompt is false: who wants an answer passes true.
 * bos_token and eos_token are t's unless request_json has them; without t they are empty.
 *   REALM_INVALID    request_json is not JSON of that shape; the template does not parse or fails, with
 *                    line and reason; or it raised an exception: the sentence is the template's own
 *   REALM_TOO_LARGE  template, request or output are over their limits (1, 16 and 64 MiB), or the
 *                    template ran for too long
 * Appends to out (which has a cap). Needs 512 KiB of stack. */
realm_status chat_template_render(gguf_string template_text, const tokenizer *t,
                                  const char *request_json, size_t request_size, buffer *out,
                                  realm_error *error);

#endif
