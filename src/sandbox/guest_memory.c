/* sandbox/guest_memory.c: see guest_memory.h. The paths that are rare: traps, memory that has
 * grown, handles that are wrong. */
#include "sandbox/guest_memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "sandbox/host_functions.h"

int64_t guest_trap(guest_call *c, realm_status status, const char *format, ...)
{
    char sentence[REALM_ERROR_MESSAGE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    request_fail(c->request, status, "%s: %s", c->function->name, sentence);
    c->trapped = 1;
    return GUEST_TRAPPED;
}

int64_t guest_note(guest_call *c, const realm_error *error)
{
    realm_error *last = &c->request->last_failure;
    realm_fail(last, error->status, "%s: %s", c->function->name, error->message);
    request_log(c->request, LOG_DEBUG, last->message, strlen(last->message));
    c->noted = 1;
    return error->status;
}

void guest_note_status(guest_call *c, int64_t result)
{
    realm_status status = (realm_status)result;
    realm_fail(&c->request->last_failure, status, "%s: %s", c->function->name,
               realm_status_meaning(status));
}

int64_t guest_trap_error(guest_call *c, const realm_error *error)
{
    return guest_trap(c, error->status, "%s", error->message);
}

/* While a start function runs the request does not know the instance's memory yet. */
static void find_memory(guest_call *c)
{
    wasmtime_extern_t item;
    if (wasmtime_caller_export_get(c->caller, "memory", 6, &item)) {
        c->request->memory = item.of.memory;
        c->request->memory_base = wasmtime_memory_data(wasmtime_caller_context(c->caller),
                                                       &item.of.memory);
    }
}

size_t guest_memory_size(guest_call *c)
{
    sandbox_request *r = c->request;
    if (c->caller) {
        if (!r->memory_base)
            find_memory(c);
        if (r->memory_base)
            r->memory_size = wasmtime_memory_data_size(wasmtime_caller_context(c->caller),
                                                       &r->memory);
    }
    return r->memory_size;
}

void *guest_range_slow(guest_call *c, int pointer_argument, uint64_t address, uint64_t size)
{
    static uint8_t nothing;
    size_t memory = guest_memory_size(c);
    if (address <= memory && size <= memory - address)
        return size ? c->request->memory_base + address : &nothing;
    char name[32];
    host_functions_argument(c->function, pointer_argument, name, sizeof name);
    guest_trap(c, REALM_TRAPPED,
               "argument '%s': %" PRIu64 " bytes at %" PRIu64
               " are not all inside of the memory's %zu",
               name, size, address, memory);
    return NULL;
}

void *guest_words_at(guest_call *c, int pointer_argument, uint64_t count)
{
    char name[32];
    uint64_t address = c->arguments[pointer_argument].u64;
    if (count <= UINT64_MAX / 4 && !(address & 3))
        return guest_range(c, pointer_argument, count * 4);
    host_functions_argument(c->function, pointer_argument, name, sizeof name);
    if (address & 3)
        guest_trap(c, REALM_TRAPPED, "argument '%s': %" PRIu64 " is not a multiple of 4", name,
                   address);
    else
        guest_trap(c, REALM_TRAPPED, "argument '%s': %" PRIu64 " items do not fit any memory", name,
                   count);
    return NULL;
}

int64_t guest_give(guest_call *c, int pointer_argument, int cap_argument, const void *bytes,
                   size_t size)
{
    void *out = guest_bytes(c, pointer_argument, cap_argument);
    if (!out)
        return GUEST_TRAPPED;
    if (size > INT32_MAX)
        return REALM_TOO_LARGE;
    uint64_t cap = c->arguments[cap_argument].u64;
    memcpy(out, size ? bytes : "", size < cap ? size : cap);
    return (int64_t)size;
}

void *guest_handle(guest_call *c, int argument, handle_kind kind)
{
    handle_kind actual;
    int32_t handle = c->arguments[argument].i32;
    void *object = handles_find(&c->request->handles, handle, kind, &actual);
    if (object)
        return object;
    char name[32];
    host_functions_argument(c->function, argument, name, sizeof name);
    if (actual == HANDLE_FREE)
        guest_trap(c, REALM_TRAPPED, "argument '%s': there is no open handle %" PRId32, name,
                   handle);
    else
        guest_trap(c, REALM_TRAPPED, "argument '%s': handle %" PRId32 " is %s, not %s", name,
                   handle, handle_kind_name(actual), handle_kind_name(kind));
    return NULL;
}

int64_t guest_new_handle(guest_call *c, handle_kind kind, const void *object)
{
    int32_t handle = handles_take(&c->request->handles, kind, object);
    return handle ? handle
                  : guest_trap(c, REALM_QUOTA, "more than %d handles are open", HANDLE_SLOTS_MAX);
}

int64_t guest_suspend(guest_call *c, wait_kind kind, engine_op *op,
                      int64_t (*finish)(guest_call *c))
{
    guest_wait *w = &c->request->wait;
    w->kind = kind;
    w->fresh = 1;
    w->op = op;
    w->finish = finish;
    w->call = *c;
    c->suspended = 1;
    return 0;
}
