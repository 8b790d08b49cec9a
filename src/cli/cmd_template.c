/* cli/cmd_template.c: `realm template`: chat messages as a model's template writes them.
 *
 * Prints exactly what the template renders, without a newline after it, so that the output can be
 * compared with apply_chat_template's byte for byte. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "text/chat_template.h"

#define MAX_TEMPLATE_BYTES (1u << 20)
#define MAX_MESSAGES_BYTES (16u << 20)
#define MAX_OUTPUT_BYTES   (64u << 20)

typedef struct request {
    const char *model, *template, *name, *messages;
} request;

typedef struct work {
    arena memory;
    gguf *g;
    tokenizer *t;
    gguf_string template;
    buffer out;
} work;

static realm_status open_model(work *w, const request *r, realm_error *error)
{
    realm_status status = gguf_open(&w->g, r->model, error);
    if (status == REALM_OK)
        status = tokenizer_open(&w->t, w->g, error);
    return status;
}

static realm_status find_template(work *w, const request *r, realm_error *error)
{
    if (!r->template)
        return chat_template_find(w->g, r->name, &w->template, error);
    char *text;
    size_t size;
    realm_status status = file_read(&w->memory, r->template, MAX_TEMPLATE_BYTES, &text, &size,
                                    error);
    if (status == REALM_OK)
        w->template = (gguf_string){text, size};
    return status;
}

static realm_status render(work *w, const request *r, realm_error *error)
{
    char *messages;
    size_t size;
    realm_status status = r->model ? open_model(w, r, error) : REALM_OK;
    if (status == REALM_OK)
        status = find_template(w, r, error);
    if (status == REALM_OK)
        status = file_read(&w->memory, r->messages, MAX_MESSAGES_BYTES, &messages, &size, error);
    if (status != REALM_OK)
        return status;
    return chat_template_render(w->template, w->t, messages, size, &w->out, error);
}

static realm_status print(const buffer *out, realm_error *error)
{
    if (out->size > 0)
        fwrite(out->data, 1, out->size, stdout);
    if (fflush(stdout) != 0 || ferror(stdout))
        return realm_fail(error, REALM_IO, "standard output: %s", strerror(errno));
    return REALM_OK;
}

static int run(const request *r)
{
    realm_error error;
    work w = {0};
    arena_init(&w.memory, 0);
    buffer_init(&w.out, MAX_OUTPUT_BYTES);
    realm_status status = render(&w, r, &error);
    if (status == REALM_OK)
        status = print(&w.out, &error);
    buffer_release(&w.out);
    tokenizer_close(w.t);
    if (w.g)
        gguf_close(w.g);
    arena_release(&w.memory);
    return status == REALM_OK ? EXIT_OK : command_failed("template", &error);
}

int cmd_template(int argc, char **argv)
{
    request r = {0};
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &r.model,
         .value = "FILE",
         .help = "the GGUF file whose template, BOS and EOS are used"},
        {.name = "template",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &r.template,
         .value = "T.jinja",
         .help = "a template to use instead of the model's own"},
        {.name = "name",
         .kind = OPTION_TEXT,
         .out = &r.name,
         .value = "NAME",
         .help = "one of the model's other templates, by name (tool_use, rag)"},
        {0}};
    const options_positional positionals[] = {
        {.name = "MESSAGES",
         .out = &r.messages,
         .required = 1,
         .help =
             "a JSON file, or - for standard input: a list of messages, or an object with "
             "messages, tools, add_generation_prompt, bos_token, eos_token and whatever else the "
             "template reads"},
        {0}};
    const options_command command = {
        .name = "template",
        .summary = "render chat messages with a model's template",
        .options = options,
        .positionals = positionals,
        .notes =
            "Renders as Hugging Face's apply_chat_template does: add_generation_prompt is false\n"
            "unless the JSON says true. Prints nothing after what the template rendered.\n"
            "\n"
            "  realm template --model model.gguf messages.json\n"
            "  echo '[{\"role\":\"user\",\"content\":\"Hi\"}]' | realm template -t chat.jinja -\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    if (!r.model && !r.template)
        return options_wrong(&command, "give --model, --template or both");
    if (r.template && r.name)
        return options_wrong(&command, "--name chooses among the model's templates, so it excludes "
                                       "--template");
    return run(&r);
}
