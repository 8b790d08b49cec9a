/* sandbox/guest_memory.h: the arguments of a host function, checked before they are used.
 *
 * Every pointer that a guest gives passes through here. A range is looked at as two 64-bit
 * numbers and never added up, so nothing wraps. What is wrong traps with the function's and the
 * argument's name. The pointers returned are into linear memory: valid until the guest runs on. */
#ifndef REALM_SANDBOX_GUEST_MEMORY_H
#define REALM_SANDBOX_GUEST_MEMORY_H

#include "sandbox/request.h"

#define GUEST_TRAPPED ((int64_t)REALM_TRAPPED)

/* Ends the request: "FUNCTION: SENTENCE". Always returns GUEST_TRAPPED, to be returned in turn. */
int64_t guest_trap(guest_call *c, realm_status status, const char *format, ...) REALM_PRINTF(3, 4);

/* What engine or model said, which already is a sentence. */
int64_t guest_trap_error(guest_call *c, const realm_error *error);

/* A status that the guest gets and may handle. The sentence, which it cannot see, is remembered: it
 * becomes the request's error if the guest hands the status on. Returns the status. */
int64_t guest_note(guest_call *c, const realm_error *error);

/* The same for a negative result that no guest_note explained. */
void guest_note_status(guest_call *c, int64_t result);

/* Bytes the guest may use now; asks Wasmtime, where that is allowed. */
size_t guest_memory_size(guest_call *c);

/* The slow half of guest_range: memory may have grown, or the range is wrong and this traps. */
void *guest_range_slow(guest_call *c, int pointer_argument, uint64_t address, uint64_t size);

static inline void *guest_range(guest_call *c, int pointer_argument, uint64_t size)
{
    sandbox_request *r = c->request;
    uint64_t address = c->arguments[pointer_argument].u64;
    if (__builtin_expect(address < r->memory_size && size <= r->memory_size - address, 1))
        return r->memory_base + address;
    return guest_range_slow(c, pointer_argument, address, size);
}

/* arguments[length_argument] bytes at arguments[pointer_argument], or NULL after a trap. */
static inline void *guest_bytes(guest_call *c, int pointer_argument, int length_argument)
{
    return guest_range(c, pointer_argument, c->arguments[length_argument].u64);
}

/* count items of 4 bytes, aligned to them, or NULL after a trap. */
void *guest_words_at(guest_call *c, int pointer_argument, uint64_t count);

static inline void *guest_words(guest_call *c, int pointer_argument, int count_argument)
{
    return guest_words_at(c, pointer_argument, c->arguments[count_argument].u64);
}

/* Copies size bytes, as many as fit, into (out, cap), and returns size; the whole of (out, cap)
 * must be the guest's. REALM_TOO_LARGE if size does not fit the result. */
int64_t guest_give(guest_call *c, int pointer_argument, int cap_argument, const void *bytes,
                   size_t size);

/* The object of the handle in arguments[argument], or NULL after a trap that says what it is. */
void *guest_handle(guest_call *c, int argument, handle_kind kind);

/* A new handle, or a trap because there are too many. */
int64_t guest_new_handle(guest_call *c, handle_kind kind, const void *object);

/* Suspends the guest until the wait described is over; finish then gives the result. Returns 0, to
 * be returned in turn. */
int64_t guest_suspend(guest_call *c, wait_kind kind, engine_op *op,
                      int64_t (*finish)(guest_call *c));

#endif
