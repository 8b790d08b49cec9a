/* realm_guest.h: what a tenant's program in C calls. One header, no libc, plain clang:
 *
 *     clang --target=wasm32 -O2 -ffreestanding -nostdlib -mbulk-memory \
 *           -Wl,--no-entry -Wl,--stack-first -I. -o program.wasm program.c
 *
 * (or --target=wasm64 for a 64-bit memory: the same source). A program defines
 *
 *     REALM_PROGRAM { ...; return 0; }
 *
 * which answers one request in a fresh instance: globals start anew, memory is never freed. What
 * each function does, traps on and costs is in docs/HOST_ABI.md; the conventions in short: a
 * result below zero is a REALM_E_ status; a function that fills (out, cap) returns the whole size and
 * writes at most cap; a mistake (wild pointer, stale handle, missing capability) ends the request.
 *
 * Lengths are size_t, so the same call is i32 in a 32-bit memory and i64 in a 64-bit one. */
#ifndef REALM_GUEST_H
#define REALM_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__wasm64__)
#define REALM_MODULE "realm64"
#else
#define REALM_MODULE "realm"
#endif

#define REALM_IMPORT(name) __attribute__((import_module(REALM_MODULE), import_name(#name))) extern
#define REALM_EXPORT(name) __attribute__((export_name(#name), visibility("default")))

/* The numbers of realm/status.h. */
enum {
    REALM_E_INVALID = -1,
    REALM_E_NOT_FOUND = -2,
    REALM_E_DENIED = -3,
    REALM_E_NO_MEMORY = -4,
    REALM_E_QUOTA = -5,
    REALM_E_CORRUPT = -6,
    REALM_E_UNSUPPORTED = -7,
    REALM_E_IO = -8,
    REALM_E_CANCELLED = -9,
    REALM_E_DEADLINE = -10,
    REALM_E_TRAPPED = -11,
    REALM_E_CONTEXT_FULL = -12,
    REALM_E_BUSY = -13,
    REALM_E_CLOSED = -14,
    REALM_E_TOO_LARGE = -15,
    REALM_E_INTERNAL = -16,
};

/* ---- host functions ----------------------------------------------------------------------------- */

/* request */
REALM_IMPORT(request_read) int32_t realm_request_read(size_t offset, void *out, size_t cap);
REALM_IMPORT(respond_text) int32_t realm_respond_text(const char *text, size_t size);
REALM_IMPORT(respond_json) int32_t realm_respond_json(const char *json, size_t size);
REALM_IMPORT(respond_error)
int32_t realm_respond_error(int32_t status, const char *text, size_t size);
REALM_IMPORT(log) int32_t realm_log(int32_t level, const char *text, size_t size);
REALM_IMPORT(now_ms) int64_t realm_now_ms(void);
REALM_IMPORT(random) int64_t realm_random(void);

/* text */
REALM_IMPORT(model_open) int32_t realm_model_open(const char *name, size_t size);
REALM_IMPORT(model_info) int32_t realm_model_info(int32_t model, char *out, size_t cap);
#define REALM_TOKENIZE_ADD_SPECIAL   1
#define REALM_TOKENIZE_PARSE_SPECIAL 2
REALM_IMPORT(tokenize)
int32_t realm_tokenize(int32_t model, const char *text, size_t size, int32_t flags, int32_t *out,
                       size_t cap);
REALM_IMPORT(decode_token)
int32_t realm_decode_token(int32_t model, int32_t token, char *out, size_t cap);
REALM_IMPORT(chat_template)
int32_t realm_chat_template(int32_t model, const char *json, size_t size, char *out, size_t cap);

/* session */
REALM_IMPORT(session_open)
int32_t realm_session_open(int32_t model, const char *options, size_t size);
REALM_IMPORT(session_fork) int32_t realm_session_fork(int32_t session);
REALM_IMPORT(session_truncate) int32_t realm_session_truncate(int32_t session, int32_t length);
REALM_IMPORT(session_length) int32_t realm_session_length(int32_t session);
REALM_IMPORT(session_close) int32_t realm_session_close(int32_t session);
REALM_IMPORT(feed) int32_t realm_feed(int32_t session, const int32_t *ids, size_t count);
REALM_IMPORT(step) int32_t realm_step(int32_t session, int32_t token);
REALM_IMPORT(step_begin) int32_t realm_step_begin(int32_t session, int32_t token);
REALM_IMPORT(step_result) int32_t realm_step_result(int32_t session);
REALM_IMPORT(wait_any)
int32_t realm_wait_any(const int32_t *sessions, size_t count, int32_t timeout_ms);
REALM_IMPORT(logits) int32_t realm_logits(int32_t session, float *out, size_t cap);
REALM_IMPORT(top_logits)
int32_t realm_top_logits(int32_t session, int32_t k, int32_t *ids, float *values);
REALM_IMPORT(bias)
int32_t realm_bias(int32_t session, const int32_t *ids, const float *values, size_t count);
REALM_IMPORT(sample) int32_t realm_sample(int32_t session, const char *options, size_t size);
enum {
    REALM_CONSTRAIN_NONE,
    REALM_CONSTRAIN_JSON_OBJECT,
    REALM_CONSTRAIN_JSON_SCHEMA,
    REALM_CONSTRAIN_REGEX,
    REALM_CONSTRAIN_LARK,
};
REALM_IMPORT(constrain)
int32_t realm_constrain(int32_t session, int32_t kind, const char *text, size_t size);
REALM_IMPORT(adapter_use)
int32_t realm_adapter_use(int32_t session, const char *name, size_t size);
REALM_IMPORT(embed)
int32_t realm_embed(int32_t model, const int32_t *ids, size_t count, const char *options,
                    size_t size, float *out, size_t cap);

/* fused */
REALM_IMPORT(generate)
int32_t realm_generate(int32_t session, const char *options, size_t size, char *out, size_t cap);

/* layer by layer */
REALM_IMPORT(load_layer) int32_t realm_load_layer(int32_t model, int32_t layer);
#if defined(__wasm64__)
REALM_IMPORT(memory64_load_layer)
int32_t realm_memory64_load_layer(int32_t model, int32_t layer, void *address, size_t room,
                                  char *out, size_t cap);
#endif
REALM_IMPORT(weight) int32_t realm_weight(int32_t owner, const char *name, size_t size);
REALM_IMPORT(tensor_new) int32_t realm_tensor_new(int32_t rows, int32_t cols);
REALM_IMPORT(tensor_read)
int32_t realm_tensor_read(int32_t tensor, int32_t first, float *out, size_t count);
REALM_IMPORT(tensor_write)
int32_t realm_tensor_write(int32_t tensor, int32_t first, const float *from, size_t count);
REALM_IMPORT(tensor_free) int32_t realm_tensor_free(int32_t tensor);
REALM_IMPORT(embed_tokens)
int32_t realm_embed_tokens(int32_t out, int32_t model, const int32_t *ids, size_t count);
REALM_IMPORT(matmul) int32_t realm_matmul(int32_t out, int32_t weight, int32_t x);
REALM_IMPORT(rms_norm)
int32_t realm_rms_norm(int32_t out, int32_t x, int32_t weight, float epsilon);
REALM_IMPORT(layer_norm)
int32_t realm_layer_norm(int32_t out, int32_t x, int32_t weight, int32_t bias, float epsilon);
REALM_IMPORT(apply_rope)
int32_t realm_apply_rope(int32_t x, int32_t model, int32_t layer, const int32_t *positions,
                         size_t count);
REALM_IMPORT(attention_forward)
int32_t realm_attention_forward(int32_t session, int32_t layer, int32_t position, int32_t q,
                                int32_t k, int32_t v, int32_t out);
REALM_IMPORT(kv_cache_get)
int32_t realm_kv_cache_get(int32_t session, int32_t layer, int32_t values, int32_t first,
                           int32_t count, float *out, size_t cap);
REALM_IMPORT(silu_mul) int32_t realm_silu_mul(int32_t out, int32_t gate, int32_t up);
REALM_IMPORT(gelu_mul) int32_t realm_gelu_mul(int32_t out, int32_t gate, int32_t up);
REALM_IMPORT(add) int32_t realm_add(int32_t out, int32_t x, int32_t y);

/* tenant */
REALM_IMPORT(state_get)
int32_t realm_state_get(const char *key, size_t size, void *out, size_t cap);
REALM_IMPORT(state_put)
int32_t realm_state_put(const char *key, size_t size, const void *value, size_t value_size);
REALM_IMPORT(state_delete) int32_t realm_state_delete(const char *key, size_t size);
REALM_IMPORT(call)
int32_t realm_call(const char *name, size_t size, const void *input, size_t input_size, void *out,
                   size_t cap);

/* ---- the frame of a program --------------------------------------------------------------------- */

#define REALM_PROGRAM                                                                              \
    REALM_EXPORT(realm_abi) int32_t realm_abi(void);                                               \
    int32_t realm_abi(void)                                                                        \
    {                                                                                              \
        return 1;                                                                                  \
    }                                                                                              \
    REALM_EXPORT(realm_handle) int32_t realm_handle(void);                                         \
    int32_t realm_handle(void)

/* Text whose size is known. */
typedef struct realm_slice {
    const char *data;
    size_t size;
} realm_slice;

/* A literal and its size, as two arguments. */
#define REALM_TEXT(literal) (literal), (sizeof(literal) - 1)

/* ---- memory: taken from the end of what the program has, never given back ------------------------ */

extern unsigned char __heap_base; /* the linker's: the first byte after stack and data */

/* 16-byte aligned, zeroed memory; 0 when the sandbox's limit is reached. */
static inline void *realm_alloc(size_t size)
{
    static size_t next, end;
    if (!next) {
        next = ((size_t)&__heap_base + 15) & ~(size_t)15;
        end = (size_t)__builtin_wasm_memory_size(0) << 16;
    }
    size_t wanted = (size + 15) & ~(size_t)15;
    if (wanted < size)
        return 0;
    if (wanted > end - next) {
        size_t pages = (wanted - (end - next) + 65535) >> 16;
        size_t grow = pages < 16 ? 16 : pages;
        if (__builtin_wasm_memory_grow(0, grow) == (size_t)-1) {
            if (grow == pages || __builtin_wasm_memory_grow(0, pages) == (size_t)-1)
                return 0;
            grow = pages;
        }
        end += grow << 16;
    }
    void *memory = (void *)next;
    next += wanted;
    return memory;
}

static inline void realm_copy(void *to, const void *from, size_t size)
{
    __builtin_memcpy(to, from, size);
}

static inline bool realm_equal(realm_slice a, const char *text)
{
    size_t i = 0;
    for (; i < a.size; i++)
        if (!text[i] || text[i] != a.data[i])
            return false;
    return text[i] == 0;
}

/* The whole request; size 0 if memory ran out or the request is empty. */
static inline realm_slice realm_request(void)
{
    int32_t size = realm_request_read(0, 0, 0);
    if (size <= 0)
        return (realm_slice){"", 0};
    char *data = realm_alloc((size_t)size + 1);
    if (!data)
        return (realm_slice){"", 0};
    realm_request_read(0, data, (size_t)size);
    return (realm_slice){data, (size_t)size};
}

/* Ends the request with a message; its result is realm_handle's. */
static inline int32_t realm_fail(int32_t status, const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    realm_respond_error(status, text, size);
    return status;
}

/* ---- a growing piece of text --------------------------------------------------------------------- */

typedef struct realm_text {
    char *data;
    size_t size, room;
    bool failed; /* memory ran out: what is in is cut */
} realm_text;

static inline void realm_text_add(realm_text *t, const char *data, size_t size)
{
    if (size > t->room - t->size) {
        size_t room = t->room ? t->room * 2 : 256;
        while (room < t->size + size)
            room *= 2;
        char *larger = realm_alloc(room);
        if (!larger) {
            t->failed = true;
            return;
        }
        realm_copy(larger, t->data, t->size);
        t->data = larger;
        t->room = room;
    }
    realm_copy(t->data + t->size, data, size);
    t->size += size;
}

static inline void realm_text_add_z(realm_text *t, const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    realm_text_add(t, text, size);
}

static inline void realm_text_add_int(realm_text *t, int64_t number)
{
    char digits[24];
    size_t at = sizeof digits;
    uint64_t left = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do
        digits[--at] = (char)('0' + left % 10);
    while (left /= 10);
    if (number < 0)
        digits[--at] = '-';
    realm_text_add(t, digits + at, sizeof digits - at);
}

/* As a JSON string with its quotes. */
static inline void realm_text_add_json(realm_text *t, const char *data, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    realm_text_add(t, "\"", 1);
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)data[i];
        if (c == '"' || c == '\\') {
            char escaped[2] = {'\\', (char)c};
            realm_text_add(t, escaped, 2);
        } else if (c < 0x20) {
            char escaped[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            realm_text_add(t, escaped, 6);
        } else {
            realm_text_add(t, (const char *)&data[i], 1);
        }
    }
    realm_text_add(t, "\"", 1);
}

#endif
