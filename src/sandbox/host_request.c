/* sandbox/host_request.c: what a guest may do with the request itself: read it, answer it, log,
 * and ask for time and random numbers. Nothing here needs a capability or suspends. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "formats/json.h"
#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"

int64_t host_request_read(guest_call *c)
{
    uint8_t *out = guest_bytes(c, 1, 2);
    if (!out)
        return GUEST_TRAPPED;
    const sandbox_input *input = &c->request->input;
    uint64_t offset = c->arguments[0].u64, cap = c->arguments[2].u64;
    if (offset >= input->body_size)
        return 0;
    size_t left = input->body_size - offset;
    memcpy(out, (const char *)input->body + offset, left < cap ? left : cap);
    return (int64_t)(left < INT32_MAX ? left : INT32_MAX);
}

static int64_t output_is_full(guest_call *c)
{
    return guest_trap(c, REALM_QUOTA,
                      "the output is larger than the tenant's limit of %" PRIu64 " bytes",
                      c->request->tenant->grants.limits.output_bytes);
}

int64_t host_request_respond_text(guest_call *c)
{
    const char *text = guest_bytes(c, 0, 1);
    if (!text)
        return GUEST_TRAPPED;
    uint64_t size = c->arguments[1].u64;
    if (!request_take_output(c->request, size))
        return output_is_full(c);
    request_emit_text(c->request, text, size);
    return 0;
}

/* A parsed value takes up to 30 times its text, and parsing cannot be preempted. */
#define JSON_MAX_BYTES ((size_t)4 << 20)

int64_t host_request_respond_json(guest_call *c)
{
    sandbox_request *r = c->request;
    const char *text = guest_bytes(c, 0, 1);
    if (!text)
        return GUEST_TRAPPED;
    size_t size = c->arguments[1].u64;
    if (r->json)
        return guest_trap(c, REALM_INVALID, "the answer was given already");
    if (!request_take_output(r, size))
        return output_is_full(c);
    json_t *value;
    realm_error error;
    if (json_parse(&value, text, size, JSON_MAX_BYTES, JSON_USUAL_DEPTH, &error) != REALM_OK)
        return guest_trap_error(c, &error);
    json_decref(value);
    r->json = malloc(size + 1);
    if (!r->json)
        return REALM_NO_MEMORY;
    memcpy(r->json, text, size);
    r->json[size] = '\0';
    r->json_size = size;
    return 0;
}

int64_t host_request_respond_error(guest_call *c)
{
    sandbox_request *r = c->request;
    const char *text = guest_bytes(c, 1, 2);
    if (!text)
        return GUEST_TRAPPED;
    int32_t status = c->arguments[0].i32;
    if (status >= 0 || status < REALM_INTERNAL)
        return guest_trap(c, REALM_INVALID, "argument 'status': %" PRId32 " is no error", status);
    if (r->responded.status != REALM_OK)
        return 0; /* the first one stays */
    uint64_t size = c->arguments[2].u64;
    int length = size < REALM_ERROR_MESSAGE_SIZE ? (int)size : REALM_ERROR_MESSAGE_SIZE;
    realm_fail(&r->responded, (realm_status)status, "%.*s", length, text);
    r->responded.status = (realm_status)status;
    return 0;
}

int64_t host_request_log(guest_call *c)
{
    const char *text = guest_bytes(c, 1, 2);
    if (!text)
        return GUEST_TRAPPED;
    int32_t level = c->arguments[0].i32;
    if (level < LOG_DEBUG || level > LOG_ERROR)
        return guest_trap(c, REALM_INVALID, "argument 'level': %" PRId32 " is not 0 to 3", level);
    return request_log(c->request, level, text, c->arguments[2].u64) ? 0 : REALM_QUOTA;
}

int64_t host_request_now_ms(guest_call *c)
{
    int64_t fixed = c->request->input.now_ms;
    return fixed ? fixed : clock_wall_ms();
}

int64_t host_request_random(guest_call *c)
{
    return (int64_t)rng_next(&c->request->random);
}
