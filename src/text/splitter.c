/* text/splitter.c: see splitter.h. */
#include "text/splitter.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/buffer.h"
#include "text/unicode.h"

/* The byte that stands for a character in the collapsed text. Those from 0x80 are not ASCII's. */
enum {
    CLASS_OTHER = 0xD0,
    CLASS_NUMBER,
    CLASS_LETTER,
    CLASS_PUNCTUATION,
    CLASS_MARK,
    CLASS_SYMBOL,
    CLASS_HAN_LETTER, /* these two only if an expression asks for \p{Han} */
    CLASS_HAN_OTHER,
    CLASS_SPACE = 0x0B, /* the vertical tab */
};

/* What a category is called in an expression, and the members of a character class it becomes: classes
 * and ASCII characters. */
typedef struct category {
    const char *name;
    uint8_t classes[3];
    const char *ascii;
} category;

static const category categories[] = {
    {"\\p{N}", {CLASS_NUMBER}, "0-9"},
    {"\\p{L}", {CLASS_LETTER}, "A-Za-z"},
    {"\\p{WideL}", {CLASS_LETTER}, ""}, /* letters that are not ASCII */
    {"\\p{P}", {CLASS_PUNCTUATION}, "!-#%-*,-/:;?@\\[-\\]_{}"},
    {"\\p{M}", {CLASS_MARK}, ""},
    {"\\p{S}", {CLASS_SYMBOL}, "$+<->\\^`|~"},
    {"\\p{Han}", {CLASS_HAN_LETTER, CLASS_HAN_OTHER}, ""},
    {"\\p{HanLetter}", {CLASS_HAN_LETTER}, ""},
};
#define CATEGORY_COUNT (sizeof categories / sizeof *categories)

typedef struct compiled_step {
    split_by_hand *by_hand; /* or: */
    pcre2_code *code;
    int collapsed;
} compiled_step;

struct splitter {
    compiled_step steps[SPLITTER_MAX_STEPS];
    size_t step_count;
    pcre2_match_context *limits;
    int wants_classes, wants_wide, wants_han;
};

/* ---- compiling ---- */

static const category *category_at(const char *expression)
{
    for (size_t i = 0; i < CATEGORY_COUNT; i++)
        if (strncmp(expression, categories[i].name, strlen(categories[i].name)) == 0)
            return &categories[i];
    return NULL;
}

static int names_category(const char *expression)
{
    return strstr(expression, "\\p{") != NULL;
}

/* The expression over the collapsed text: categories become members of character classes. */
static realm_status collapse_expression(const char *expression, buffer *out)
{
    int inside = 0; /* of [ ] */
    realm_status status = REALM_OK;
    for (const char *at = expression; *at && status == REALM_OK;) {
        const category *named = category_at(at);
        if (named) {
            status = buffer_printf(out, inside ? "%s%s" : "[%s%s]", (const char *)named->classes,
                                   named->ascii);
            at += strlen(named->name);
            continue;
        }
        size_t length = *at == '\\' && at[1] ? 2 : 1;
        if (*at == '[')
            inside = 1;
        else if (*at == ']')
            inside = 0;
        status = buffer_add(out, at, length);
        at += length;
    }
    return status;
}

static realm_status compile(compiled_step *step, const char *expression, realm_error *error)
{
    buffer collapsed;
    buffer_init(&collapsed, 64 << 10);
    realm_status status = REALM_OK;
    step->collapsed = names_category(expression);
    if (step->collapsed)
        status = collapse_expression(expression, &collapsed);
    if (status != REALM_OK) {
        realm_fail_memory(error, 64 << 10, "an expression");
        goto out;
    }
    const char *text = step->collapsed ? buffer_text(&collapsed) : expression;
    /* "$" must not match before a final newline: the reference's does not. */
    uint32_t options = PCRE2_DOLLAR_ENDONLY | (step->collapsed ? 0 : PCRE2_UTF);
    int code;
    PCRE2_SIZE offset;
    step->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, options, &code, &offset,
                               NULL);
    if (!step->code) {
        status = realm_fail(error, REALM_INTERNAL,
                            "the pre-tokenizer's expression %s does not compile (%d at %zu)",
                            expression, code, (size_t)offset);
        goto out;
    }
    /* Where the processor has no JIT, matching falls back to PCRE2's interpreter by itself. */
    pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE);
out:
    buffer_release(&collapsed);
    return status;
}

/* Linear expressions need about as many steps as there are characters; these are for one that is
 * not, so that it becomes an error and not a hang. */
static int set_limits(splitter *s)
{
    s->limits = pcre2_match_context_create(NULL);
    if (!s->limits)
        return 0;
    pcre2_set_match_limit(s->limits, 200u * 1000 * 1000);
    pcre2_set_heap_limit(s->limits, 256u << 10); /* KiB */
    return 1;
}

realm_status splitter_open(splitter **out, const split_step *steps, realm_error *error)
{
    splitter *s = calloc(1, sizeof *s);
    if (!s || !set_limits(s)) {
        splitter_close(s);
        return realm_fail_memory(error, sizeof *s, "a pre-tokenizer");
    }
    for (size_t i = 0; i < SPLITTER_MAX_STEPS && (steps[i].expression || steps[i].by_hand); i++) {
        compiled_step *step = &s->steps[s->step_count++];
        step->by_hand = steps[i].by_hand;
        if (!steps[i].expression)
            continue;
        realm_status status = compile(step, steps[i].expression, error);
        if (status != REALM_OK) {
            splitter_close(s);
            return status;
        }
        s->wants_classes |= step->collapsed;
        s->wants_wide |= !step->collapsed;
        s->wants_han |= strstr(steps[i].expression, "\\p{Han") != NULL;
    }
    *out = s;
    return REALM_OK;
}

void splitter_close(splitter *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->step_count; i++)
        pcre2_code_free(s->steps[i].code);
    pcre2_match_context_free(s->limits);
    free(s);
}

/* ---- the two views of the text ---- */

static uint8_t collapse(uint32_t code, int wants_han)
{
    if (code < 0x80)
        return (uint8_t)code;
    if (unicode_is_space(code))
        return CLASS_SPACE;
    unicode_class class = unicode_class_of(code);
    if (wants_han && unicode_is_han(code))
        return class == UNICODE_LETTER ? CLASS_HAN_LETTER : CLASS_HAN_OTHER;
    switch (class) {
    case UNICODE_NUMBER: return CLASS_NUMBER;
    case UNICODE_LETTER: return CLASS_LETTER;
    case UNICODE_PUNCTUATION: return CLASS_PUNCTUATION;
    case UNICODE_MARK: return CLASS_MARK;
    case UNICODE_SYMBOL: return CLASS_SYMBOL;
    default: return CLASS_OTHER;
    }
}

static realm_status make_classes(const splitter *s, arena *a, split_text *t)
{
    uint8_t *classes = arena_take(a, t->count);
    if (!classes)
        return REALM_NO_MEMORY;
    for (size_t i = 0; i < t->count; i++)
        classes[i] = collapse(t->codes[i], s->wants_han);
    t->classes = classes;
    return REALM_OK;
}

/* Well-formed UTF-8 for PCRE2: a surrogate, which no expression asks for, becomes U+FFFD. */
static uint32_t widen(uint32_t code)
{
    if (code >= 0x80 && unicode_is_space(code))
        return CLASS_SPACE;
    return code >= 0xD800 && code <= 0xDFFF ? 0xFFFD : code;
}

static realm_status make_wide(arena *a, split_text *t)
{
    uint8_t *wide = arena_take_array(a, t->count, 4);
    uint32_t *wide_at = arena_take_array(a, t->count + 1, sizeof *wide_at);
    if (!wide || !wide_at)
        return REALM_NO_MEMORY;
    uint32_t at = 0;
    for (size_t i = 0; i < t->count; i++) {
        wide_at[i] = at;
        at += (uint32_t)unicode_encode(widen(t->codes[i]), wide + at);
    }
    wide_at[t->count] = at;
    t->wide = wide;
    t->wide_at = wide_at;
    return REALM_OK;
}

static realm_status decode(arena *a, const char *text, size_t size, split_text *t)
{
    uint32_t *codes = arena_take_array(a, size, sizeof *codes);
    if (!codes)
        return REALM_NO_MEMORY;
    for (size_t i = 0; i < size; t->count++)
        i += (size_t)unicode_decode((const uint8_t *)text + i, size - i, &codes[t->count]);
    t->codes = codes;
    return REALM_OK;
}

/* ---- cutting ---- */

/* One match in subject[0..size) from position on. 1 and its bounds, 0 for none, or PCRE2's error. */
static int match_from(const splitter *s, const compiled_step *step, const uint8_t *subject,
                      size_t size, size_t position, pcre2_match_data *data, size_t bounds[2])
{
    uint32_t options = step->collapsed ? 0 : PCRE2_NO_UTF_CHECK;
    int code = pcre2_match(step->code, subject, size, position, options, data, s->limits);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(step->code, subject, size, position, options | PCRE2_NO_JIT, data,
                           s->limits);
    if (code == PCRE2_ERROR_NOMATCH)
        return 0;
    if (code < 0)
        return code;
    const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(data);
    bounds[0] = vector[0];
    bounds[1] = vector[1];
    return 1;
}

typedef struct cutting {
    const splitter *splitter;
    const compiled_step *step;
    const split_text *text;
    pcre2_match_data *data;
    uint32_t *ends; /* [text->count] */
    size_t count;
} cutting;

static size_t character_of(const cutting *c, uint32_t character, size_t offset)
{
    while (c->text->wide_at[character] < offset)
        character++;
    return character;
}

/* Cuts the word [first, last) by an expression. */
static int cut_by_expression(cutting *c, uint32_t first, uint32_t last)
{
    const split_text *t = c->text;
    int collapsed = c->step->collapsed;
    size_t base = collapsed ? first : t->wide_at[first];
    const uint8_t *subject = (collapsed ? t->classes : t->wide) + base;
    size_t size = (collapsed ? last : t->wide_at[last]) - base;
    size_t position = 0, bounds[2];
    uint32_t done = first; /* everything before it is in words */
    while (position < size) {
        int found = match_from(c->splitter, c->step, subject, size, position, c->data, bounds);
        if (found < 0)
            return found;
        if (!found || bounds[1] == bounds[0])
            break;
        uint32_t from = (uint32_t)(collapsed ? base + bounds[0]
                                             : character_of(c, done, base + bounds[0]));
        uint32_t to = (uint32_t)(collapsed ? base + bounds[1]
                                           : character_of(c, from, base + bounds[1]));
        if (from > done)
            c->ends[c->count++] = from;
        c->ends[c->count++] = to;
        done = to;
        position = bounds[1];
    }
    if (done < last)
        c->ends[c->count++] = last;
    return 0;
}

static realm_status run_step(cutting *c, const uint32_t *ends, size_t word_count,
                             realm_error *error)
{
    uint32_t first = 0;
    for (size_t i = 0; i < word_count; first = ends[i++]) {
        if (c->step->by_hand) {
            c->count += c->step->by_hand(c->text, first, ends[i], c->ends + c->count);
            continue;
        }
        int code = cut_by_expression(c, first, ends[i]);
        if (code == PCRE2_ERROR_NOMEMORY || code == PCRE2_ERROR_HEAPLIMIT)
            return realm_fail_memory(error, 0, "matching the pre-tokenizer's expression");
        if (code < 0)
            return realm_fail(error, REALM_TOO_LARGE,
                              "the pre-tokenizer gave up on this text (PCRE2 error %d)", code);
    }
    return REALM_OK;
}

static realm_status run_steps(const splitter *s, split_text *t, uint32_t *spare, realm_error *error)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (!data)
        return realm_fail_memory(error, 0, "a match");
    realm_status status = REALM_OK;
    for (size_t i = 0; i < s->step_count && status == REALM_OK; i++) {
        cutting c = {s, &s->steps[i], t, data, spare, 0};
        status = run_step(&c, t->ends, t->word_count, error);
        spare = t->ends;
        t->ends = c.ends;
        t->word_count = c.count;
    }
    pcre2_match_data_free(data);
    return status;
}

realm_status splitter_cut(const splitter *s, arena *a, const char *text, size_t size,
                          split_text *out, realm_error *error)
{
    *out = (split_text){0};
    realm_status status = decode(a, text, size, out);
    if (status == REALM_OK && s->wants_classes)
        status = make_classes(s, a, out);
    if (status == REALM_OK && s->wants_wide)
        status = make_wide(a, out);
    uint32_t *spare = NULL;
    if (status == REALM_OK) {
        out->ends = arena_take_array(a, out->count, sizeof *out->ends);
        spare = arena_take_array(a, out->count, sizeof *spare);
    }
    if (!spare || !out->ends)
        return realm_fail_memory(error, size * 16, "splitting a text");
    out->ends[0] = (uint32_t)out->count;
    out->word_count = 1;
    return run_steps(s, out, spare, error);
}

/* ---- steps by hand ---- */

static uint32_t run_end(const split_text *text, uint32_t at, uint32_t last,
                        int (*belongs)(uint32_t))
{
    while (at < last && belongs(text->codes[at]))
        at++;
    return at;
}

static int is_number(uint32_t code)
{
    return code < 0x80 ? code >= '0' && code <= '9' : unicode_class_of(code) == UNICODE_NUMBER;
}

static int is_digit(uint32_t code)
{
    return code >= '0' && code <= '9';
}

size_t splitter_threes_from_right(const split_text *text, uint32_t first, uint32_t last,
                                  uint32_t *out)
{
    size_t count = 0;
    for (uint32_t at = first; at < last;) {
        uint32_t end = run_end(text, at, last, is_number);
        if (end == at) {
            at++;
            continue;
        }
        uint32_t lead = (end - at) % 3;
        for (at += lead ? lead : 3; at <= end; at += 3)
            out[count++] = at;
        at = end;
    }
    if (count == 0 || out[count - 1] != last)
        out[count++] = last;
    return count;
}

size_t splitter_before_threes(const split_text *text, uint32_t first, uint32_t last, uint32_t *out)
{
    size_t count = 0;
    for (uint32_t at = first; at < last;) {
        uint32_t end = run_end(text, at, last, is_digit);
        if (end == at) {
            at++;
            continue;
        }
        for (at += (end - at) % 3; at < end; at += 3)
            if (at > first)
                out[count++] = at;
        at = end;
    }
    out[count++] = last;
    return count;
}

static int is_blank(uint32_t code)
{
    return code != '\r' && code != '\n' && unicode_is_space(code);
}

size_t splitter_space_powers(const split_text *text, uint32_t first, uint32_t last, uint32_t *out)
{
    size_t count = 0;
    if (run_end(text, first, last, is_blank) != last)
        first = last; /* not all blank: one word */
    for (uint32_t power = 512; first < last; power /= 2)
        for (; last - first >= power; first += power)
            out[count++] = first + power;
    if (count == 0)
        out[count++] = last;
    return count;
}
