/* realm_deps.h: the Rust libraries that Realm uses besides Wasmtime, behind a C interface.
 *
 * Chat templates are rendered by MiniJinja, grammars that constrain sampling are run by llguidance.
 * Wasmtime keeps its own headers (wasmtime.h) and lives in the same archive, because two archives of
 * Rust code cannot be linked into one program.
 *
 * Every input may be hostile: sizes, work and memory are bounded, and no Rust panic crosses this
 * line, it becomes REALM_DEPS_INTERNAL with its message. Functions that can fail return one of the
 * results below, whose numbers are realm_status's, and on failure put one sentence into *error
 * (which may be NULL when it is not wanted; it is left alone on success). Strings handed out, errors
 * included, are the caller's: give them back with realm_deps_string_free.
 *
 * Nothing here keeps a pointer to what the caller passed in. Nothing here does I/O or starts threads. */
#ifndef REALM_DEPS_H
#define REALM_DEPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum realm_deps_result {
    REALM_DEPS_OK = 0,
    REALM_DEPS_INVALID = -1,    /* the input is wrong, or a template called raise_exception */
    REALM_DEPS_TOO_LARGE = -15, /* the input, the work or the output is larger than its limit */
    REALM_DEPS_INTERNAL = -16,  /* a library broke its own invariants; please report it */
} realm_deps_result;

/* Frees a string or an error from any function here. NULL is allowed. Any thread. */
void realm_deps_string_free(char *string);

/* "wasmtime 48.0.8, llguidance 1.9.1, minijinja 2.24.0": what this archive was built of. Static. */
const char *realm_deps_version(void);

/* ---- Chat templates ----
 *
 * Renders a model's own Jinja text as Hugging Face's apply_chat_template does: jinja2's immutable
 * sandbox with trim_blocks, lstrip_blocks, break and continue, {% generation %}, a tojson that is
 * json.dumps(ensure_ascii=False), raise_exception and strftime_now. Values print as in Python (True,
 * None, ['a'], 1e+20), text has Python's methods, and names absent from the context are undefined.
 *
 * context_json is one JSON object; its members are the template's variables, in their order: messages,
 * tools, documents, add_generation_prompt, bos_token, eos_token and whatever else a caller passes. Two
 * of them are for us and never seen by the template:
 *   "__now_ms"   milliseconds since 1970 for strftime_now, in UTC. Absent, it is the clock's local time
 *
 *   REALM_DEPS_OK         *out holds *out_size bytes of UTF-8 and a zero byte after them
 *   REALM_DEPS_INVALID    the template does not parse or fails, or the context is no JSON object;
 *                         where the template called raise_exception, *error is its text alone
 *   REALM_DEPS_TOO_LARGE  the template is over 1 MiB, the context over 64 MiB, the output over 64 MiB,
 *                         or it ran over its budget of about two seconds' work or nested too deeply
 *
 * Compiles the template each time, which takes about as long as rendering it. Any thread, with at
 * least 512 KiB of stack left. */
int realm_deps_template_render(const char *template_text, size_t template_size,
                               const char *context_json, size_t context_size, char **out,
                               size_t *out_size, char **error);

/* ---- Grammars ----
 *
 * A grammar_env knows a tokenizer's tokens, a matcher follows one sequence through one grammar. An
 * env may be used by any number of threads, and closed while matchers live: they hold what they need.
 * A matcher is used by one thread at a time. */
typedef struct realm_deps_grammar_env realm_deps_grammar_env;
typedef struct realm_deps_matcher realm_deps_matcher;

/* Makes an env of a tokenizer. token_bytes holds the bytes of all tokens one after another and
 * token_sizes each one's length; both are copied.
 *   token_bytes   [sum of token_sizes]  what the token decodes to; not its spelling in the vocabulary
 *   token_sizes   [token_count]         0 for a token that no output may hold (unused, unknown)
 *   token_special [token_count]         not 0 for control tokens, which only a grammar that names them
 *                                       (Lark's <name>) lets through; NULL if there are none
 *   eos_tokens    [eos_count]           those that may end a sequence, at least one
 * Takes 1.3 s of one core for Gemma 3's 262 144 tokens (and 120 MB at its peak), so make it when the
 * first grammar asks for it, on a thread without deadlines.
 *   REALM_DEPS_INVALID    no tokens, or an end-of-sequence token that is not one of them
 *   REALM_DEPS_TOO_LARGE  more than 2^21 tokens or a token of more than 1000 bytes */
int realm_deps_grammar_env_open(realm_deps_grammar_env **out, const uint8_t *token_bytes,
                                const uint32_t *token_sizes, const uint8_t *token_special,
                                uint32_t token_count, const uint32_t *eos_tokens, size_t eos_count,
                                char **error);

/* NULL is allowed. */
void realm_deps_grammar_env_close(realm_deps_grammar_env *env);

typedef enum realm_deps_grammar_kind {
    REALM_DEPS_JSON_SCHEMA = 0, /* text is a JSON schema */
    REALM_DEPS_REGEX = 1,       /* text is a regular expression (Rust's syntax), matched whole */
    REALM_DEPS_LARK = 2, /* text is a grammar in llguidance's dialect of Lark, from `start` */
    REALM_DEPS_JSON_OBJECT = 3, /* any JSON object; text is ignored */
} realm_deps_grammar_kind;

/* Compiles a grammar, which takes 1 to 50 ms: not for a thread with deadlines in milliseconds. JSON
 * may have white space between its parts, but never so much that a model could write nothing else.
 *   REALM_DEPS_INVALID    the text does not parse, or asks for what is not supported (named)
 *   REALM_DEPS_TOO_LARGE  the text is over 1 MiB or the grammar over llguidance's limits */
int realm_deps_matcher_open(realm_deps_matcher **out, const realm_deps_grammar_env *env,
                            realm_deps_grammar_kind kind, const char *text, size_t text_size,
                            char **error);

/* A second matcher in the same state, to be stepped on its own. Cheap: caches are shared. */
int realm_deps_matcher_clone(realm_deps_matcher **out, const realm_deps_matcher *matcher,
                             char **error);

/* NULL is allowed. */
void realm_deps_matcher_close(realm_deps_matcher *matcher);

/* Back to the grammar's start. */
int realm_deps_matcher_reset(realm_deps_matcher *matcher, char **error);

/* Sets bit t % 32 of mask[t / 32] for every token t that may come next and clears all other bits.
 * mask has mask_count words, at least (token_count + 31) / 32. End-of-sequence tokens are set where the
 * grammar may end, and alone once it has. With Gemma 3's
 * vocabulary 10 microseconds on average and 60 at most, in a JSON schema of three members.
 *   REALM_DEPS_INVALID    mask_count is too small
 *   REALM_DEPS_TOO_LARGE  the grammar is too ambiguous to be followed any further; the matcher is lost */
int realm_deps_matcher_mask(realm_deps_matcher *matcher, uint32_t *mask, size_t mask_count,
                            char **error);

/* Goes on by one token.
 *   REALM_DEPS_INVALID    the grammar does not allow it here; the matcher stays as it was */
int realm_deps_matcher_consume(realm_deps_matcher *matcher, uint32_t token, char **error);

/* Takes the last token_count tokens back, for speculation.
 *   REALM_DEPS_INVALID    so many were not consumed */
int realm_deps_matcher_rollback(realm_deps_matcher *matcher, size_t token_count, char **error);

/* Puts the bytes that must come next, if the grammar leaves no choice, into *out (a string of
 * *out_size bytes and a zero, often empty). They may be split into tokens in any way. */
int realm_deps_matcher_forced(realm_deps_matcher *matcher, char **out, size_t *out_size,
                              char **error);

/* 1 where the sequence so far satisfies the grammar, else 0; 0 also for a lost matcher. */
int realm_deps_matcher_is_accepting(realm_deps_matcher *matcher);

/* 1 where nothing but an end may follow, or the matcher is lost, else 0. */
int realm_deps_matcher_is_stopped(const realm_deps_matcher *matcher);

#ifdef __cplusplus
}
#endif

#endif
