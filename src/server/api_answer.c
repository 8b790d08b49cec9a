/* server/api_answer.c: answers as OpenAI's clients read them: JSON, and errors of one shape. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "server/router.h"

static void problem_set_v(api_problem *p, int status, const char *type, const char *code,
                          const char *param, const char *format, va_list arguments)
{
    realm_error said;
    realm_fail_v(&said, REALM_INVALID, format, arguments);
    *p = (api_problem){.status = status, .type = type, .code = code};
    snprintf(p->param, sizeof p->param, "%s", param);
    memcpy(p->message, said.message, sizeof p->message);
}

void api_problem_set(api_problem *p, int status, const char *type, const char *code,
                     const char *param, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    problem_set_v(p, status, type, code, param, format, arguments);
    va_end(arguments);
}

int api_wrong(api_problem *p, const char *param, const char *code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    problem_set_v(p, 400, "invalid_request_error", code, param, format, arguments);
    va_end(arguments);
    return 0;
}

void api_problem_of(api_problem *p, realm_status status, const char *message)
{
    int http = 500;
    const char *type = "server_error", *code = "internal_error";
    switch (status) {
    case REALM_INVALID: http = 400, type = "invalid_request_error", code = "invalid_value"; break;
    case REALM_NOT_FOUND: http = 404, type = "invalid_request_error", code = "not_found"; break;
    case REALM_DENIED:
        http = 403, type = "invalid_request_error", code = "permission_denied";
        break;
    case REALM_CONTEXT_FULL:
        http = 400, type = "invalid_request_error", code = "context_length_exceeded";
        break;
    case REALM_TOO_LARGE: http = 400, type = "invalid_request_error", code = "too_large"; break;
    case REALM_UNSUPPORTED: http = 400, type = "invalid_request_error", code = "unsupported"; break;
    case REALM_QUOTA: http = 429, type = "rate_limit_error", code = "limit_exceeded"; break;
    case REALM_DEADLINE: http = 504, type = "timeout_error", code = "deadline_exceeded"; break;
    case REALM_TRAPPED: type = "program_error", code = "program_trapped"; break;
    case REALM_CLOSED:
    case REALM_CANCELLED:
    case REALM_BUSY:
    case REALM_NO_MEMORY: http = 503, code = "unavailable"; break;
    default: break;
    }
    api_problem_set(p, http, type, code, "", "%s", message);
}

void api_problem_of_run(api_problem *p, const guest_result *result)
{
    api_problem_of(p, result->status, result->message);
    if (result->status == REALM_QUOTA && result->usage.ran_out)
        p->type = p->code = "insufficient_quota";
}

json_t *api_problem_json(const api_problem *p)
{
    return json_pack("{s:{s:s, s:s, s:s?, s:s}}", "error", "message", p->message, "type", p->type,
                     "param", *p->param ? p->param : NULL, "code", p->code);
}

void api_reply_problem(exchange *x, const api_problem *p)
{
    if (p->status == 401)
        exchange_set(x, "www-authenticate", "Bearer");
    if (p->status == 429 && strcmp(p->code, "insufficient_quota") == 0)
        exchange_set(x, "x-should-retry", "false");
    else if (p->status == 503 || p->status == 429)
        exchange_set(x, "retry-after", "1");
    api_reply_refusal(x, p);
}

void api_reply_refusal(exchange *x, const api_problem *p)
{
    if (x->fail)
        x->fail(x, p->status, p->code, p->param, p->message);
    else
        api_reply_json(x, p->status, api_problem_json(p));
}

void api_reply_json(exchange *x, int status, json_t *value)
{
    char *text = json_text(value, 0);
    json_decref(value);
    if (text) {
        exchange_reply(x, status, "application/json", text, strlen(text));
    } else {
        static const char sorry[] =
            "{\"error\":{\"message\":\"the host is out of memory\",\"type\":"
            "\"server_error\",\"param\":null,\"code\":\"unavailable\"}}";
        exchange_reply(x, 503, "application/json", sorry, sizeof sorry - 1);
    }
    free(text);
}

void api_add_escaped(buffer *out, const char *text, size_t size)
{
    size_t plain = 0; /* where what needs no change began */
    for (size_t i = 0; i < size;) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\') {
            i++;
            continue;
        }
        int length = byte < 0x80 ? 0 : utf8_length((const uint8_t *)text + i, size - i);
        if (length > 0) {
            i += (size_t)length;
            continue;
        }
        buffer_add(out, text + plain, i - plain);
        if (byte >= 0x80)
            buffer_add_text(out, "\xEF\xBF\xBD");
        else if (byte == '\n')
            buffer_add_text(out, "\\n");
        else if (byte == '"' || byte == '\\')
            buffer_printf(out, "\\%c", byte);
        else
            buffer_printf(out, "\\u%04x", byte);
        plain = ++i;
    }
    buffer_add(out, text + plain, size - plain);
}
