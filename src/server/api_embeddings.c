/* server/api_embeddings.c: POST /v1/embeddings: the built-in program `embeddings`, or the tenant's own, turns
 * texts into vectors.
 *
 * The program writes a line of base64 a text (the vector's floats, little-endian), which is what clients
 * that ask for base64 get as it is. Net thread, but for read_body. */
#include <stdlib.h>
#include <string.h>

#include "server/single_run.h"

static json_t *read_body(exchange *x, api_problem *problem)
{
    return openai_request_json(x->body.data, x->body.size, problem);
}

static int add_vector(buffer *out, const single_run *e, const char *line, size_t size)
{
    if (e->r.as_base64) {
        buffer_printf(out, "\"%.*s\"}", (int)size, line);
        return size > 0;
    }
    float *numbers;
    size_t count;
    int ok = single_run_vector(line, size, &numbers, &count);
    buffer_add_text(out, "[");
    for (size_t i = 0; ok && i < count; i++)
        buffer_printf(out, i ? ",%.9g" : "%.9g", (double)numbers[i]);
    buffer_add_text(out, "]}");
    free(numbers);
    return ok;
}

static int answer(single_run *e, const char *text, size_t size, const guest_result *result)
{
    buffer out;
    buffer_init(&out, SIZE_MAX);
    buffer_add_text(&out, "{\"object\":\"list\",\"data\":[");
    const char *line;
    size_t length;
    int64_t index = 0;
    int ok = 1;
    for (size_t at = 0; ok && (line = single_run_line(text, size, &at, &length)); index++) {
        buffer_printf(&out, "%s{\"object\":\"embedding\",\"index\":%" PRId64 ",\"embedding\":",
                      index ? "," : "", index);
        ok = add_vector(&out, e, line, length);
    }
    buffer_add_text(&out, "],\"model\":\"");
    api_add_escaped(&out, e->r.model->name, strlen(e->r.model->name));
    buffer_printf(&out,
                  "\",\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64 "}}",
                  result->usage.prompt_tokens, result->usage.prompt_tokens);
    if (out.lost)
        exchange_refuse(e->x, 503, "unavailable", "the host is out of memory");
    else if (ok)
        exchange_reply(e->x, 200, "application/json", buffer_text(&out), out.size);
    ok = ok || out.lost;
    buffer_release(&out);
    return ok;
}

void api_embeddings(server *s, exchange *x, const caller *c)
{
    static const single_output output = {OPENAI_EMBEDDINGS, read_body, answer};
    single_run_begin(s, x, c, &output);
}
