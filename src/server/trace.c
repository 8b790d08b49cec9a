/* server/trace.c: see trace.h. */
#include "server/trace.h"

#include <string.h>

#include "base/map.h"
#include "base/rng.h"
#include "server/exchange.h"

/* version "-" trace-id "-" parent-id "-" flags */
#define TRACE_AT   3
#define PARENT_AT  36
#define FLAGS_AT   53
#define WHOLE_SIZE 55

static const char digits[] = "0123456789abcdef";

/* ---- traceparent ---- */

/* Lower case alone, as the specification has it. */
static int are_digits(const char *text, size_t size)
{
    return strspn(text, digits) >= size;
}

static int is_zero(const char *text, size_t size)
{
    return strspn(text, "0") >= size;
}

/* Later versions may have more behind the flags; version ff does not exist. */
static int is_proper(const char *text)
{
    size_t size = strlen(text);
    if (size < WHOLE_SIZE || text[TRACE_AT - 1] != '-' || text[PARENT_AT - 1] != '-' ||
        text[FLAGS_AT - 1] != '-' || !are_digits(text, 2) || memcmp(text, "ff", 2) == 0)
        return 0;
    int is_first = memcmp(text, "00", 2) == 0;
    if (size > WHOLE_SIZE && (is_first || text[WHOLE_SIZE] != '-'))
        return 0;
    return are_digits(text + TRACE_AT, TRACE_ID_SIZE) && !is_zero(text + TRACE_AT, TRACE_ID_SIZE) &&
           are_digits(text + PARENT_AT, 16) && !is_zero(text + PARENT_AT, 16) &&
           are_digits(text + FLAGS_AT, 2);
}

static uint64_t make_number(void)
{
    static rng random;
    static int seeded;
    if (!seeded) {
        rng_init(&random, map_seed() ^ 0x7472616365u); /* not the numbers of request ids */
        seeded = 1;
    }
    return rng_next(&random);
}

static void make_id(char id[TRACE_ID_SIZE + 1])
{
    uint64_t halves[2] = {make_number(), make_number() | 1}; /* not all zero */
    for (int i = 0; i < TRACE_ID_SIZE; i++)
        id[i] = digits[halves[i / 16] >> (i % 16 * 4) & 15];
    id[TRACE_ID_SIZE] = 0;
}

uint64_t trace_make_span(void)
{
    return make_number() | 1;
}

uint64_t trace_number(const char *text)
{
    uint64_t number = 0;
    for (int i = 0; i < 16; i++)
        number = number << 4 | (uint64_t)(strchr(digits, text[i]) - digits);
    return number;
}

/* NULL: there is none, or several, of which none is better than the others. */
static const char *only_value(const exchange_header *headers, size_t count, const char *name)
{
    const char *found = NULL;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(headers[i].name, name) != 0)
            continue;
        if (found)
            return NULL;
        found = headers[i].value;
    }
    return found;
}

void trace_read(trace_context *out, const exchange_header *headers, size_t count)
{
    const char *text = only_value(headers, count, "traceparent");
    *out = (trace_context){.flags = TRACE_RANDOM};
    if (!text || !is_proper(text)) {
        make_id(out->id);
        return;
    }
    memcpy(out->id, text + TRACE_AT, TRACE_ID_SIZE);
    out->parent = trace_number(text + PARENT_AT);
    out->flags = (strchr(digits, text[FLAGS_AT + 1]) - digits) & (TRACE_SAMPLED | TRACE_RANDOM);
}

/* ---- tracestate ---- */

#define MAX_MEMBERS 32
#define LONG_MEMBER 128 /* longer ones go first where there is no room for all */

typedef struct member {
    const char *text;
    size_t size;
} member;

static int is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c && strchr("_-*/@", c));
}

/* key "=" value, by level 2, whose keys hold level 1's. */
static int is_member(const member *m)
{
    const char *equals = memchr(m->text, '=', m->size);
    size_t key = equals ? (size_t)(equals - m->text) : 0, value = m->size - key - 1;
    if (key < 1 || key > 256 || value < 1 || value > 256 || !is_key_char(*m->text) ||
        strchr("_-*/@", *m->text))
        return 0;
    for (size_t i = 0; i < key; i++)
        if (!is_key_char(m->text[i]))
            return 0;
    for (size_t i = 1; i <= value; i++)
        if (equals[i] < 0x20 || equals[i] > 0x7e || equals[i] == '=')
            return 0;
    return 1;
}

static int is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* Adds a value's members to list; 0: it is wrong. Empty ones may be between commas. */
static int split(const char *text, member *list, size_t *count)
{
    while (1) {
        size_t size = strcspn(text, ",");
        member m = {text, size};
        for (; m.size && is_blank(*m.text); m.text++)
            m.size--;
        while (m.size && is_blank(m.text[m.size - 1]))
            m.size--;
        if (m.size) {
            if (*count == MAX_MEMBERS || !is_member(&m))
                return 0;
            list[(*count)++] = m;
        }
        if (!text[size])
            return 1;
        text += size + 1;
    }
}

static size_t joined_size(const member *list, size_t count)
{
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += list[i].size + 1;
    return size ? size - 1 : 0;
}

static size_t fit(member *list, size_t count)
{
    while (joined_size(list, count) > TRACE_STATE_SIZE) {
        size_t goes = count - 1;
        for (size_t i = 0; i < count; i++)
            if (list[i].size > LONG_MEMBER)
                goes = i;
        count--;
        memmove(list + goes, list + goes + 1, (count - goes) * sizeof *list);
    }
    return count;
}

const char *trace_read_state(const exchange_header *headers, size_t count, arena *memory)
{
    member list[MAX_MEMBERS];
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        if (strcmp(headers[i].name, "tracestate") == 0 && !split(headers[i].value, list, &n))
            return "";
    n = fit(list, n);
    char *out = n ? arena_take(memory, joined_size(list, n) + 1) : NULL;
    if (!out)
        return "";
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i)
            out[at++] = ',';
        memcpy(out + at, list[i].text, list[i].size);
        at += list[i].size;
    }
    return out;
}
