/* server/api_models.c: which models there are for whom. */
#include <string.h>

#include "server/router.h"

static json_t *describe(const server *s, const served_model *m)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:I, s:b, s:b}", "id", m->name, "object", "model",
                     "created", (json_int_t)(s->started_ms / 1000), "owned_by", "realm",
                     "context_length", (json_int_t)m->n_context, "has_chat_template",
                     m->has_template, "takes_tools", m->tools != TOOLS_NONE);
}

static int allowed(server *s, const caller *c, const char *name)
{
    return s->gate->table->allows_model(s->gate, c, name);
}

void api_models(server *s, exchange *x, const caller *c)
{
    json_t *list = json_array();
    for (int i = 0; i < s->n_models; i++)
        if (allowed(s, c, s->models[i].name))
            json_array_append_new(list, describe(s, &s->models[i]));
    api_reply_json(x, 200, json_pack("{s:s, s:o}", "object", "list", "data", list));
}

void api_model(server *s, exchange *x, const caller *c)
{
    const char *name = router_rest(x);
    const served_model *m = server_find_model(s, name);
    if (m && allowed(s, c, m->name)) {
        api_reply_json(x, 200, describe(s, m));
        return;
    }
    api_problem problem;
    api_problem_set(&problem, 404, "invalid_request_error", "model_not_found", "model",
                    "the model '%.100s' does not exist or you may not use it", name);
    api_reply_problem(x, &problem);
}
