/* server/spans.c: see spans.h. */
#include "server/spans.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"

static uint64_t wall_offset(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - clock_ns();
}

spans *spans_open(const trace_context *trace)
{
    spans *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    arena_init(&s->memory, SPANS_BYTES);
    s->trace = *trace;
    s->state = "";
    s->wall_ns = wall_offset();
    return s;
}

void spans_close(spans *s)
{
    if (!s)
        return;
    arena_release(&s->memory);
    free(s);
}

/* A clean copy, or NULL. */
static const char *copy_text(spans *s, const char *text)
{
    size_t size = strlen(text), used = 0;
    if (size > SPANS_TEXT_SIZE)
        size = utf8_complete_prefix((const uint8_t *)text, SPANS_TEXT_SIZE);
    if (utf8_valid((const uint8_t *)text, size))
        return arena_copy(&s->memory, text, size);
    uint8_t *out = arena_take(&s->memory, 3 * size + 1); /* U+FFFD for each byte */
    for (size_t at = 0; out && at < size;) {
        uint32_t code;
        at += (size_t)utf8_decode((const uint8_t *)text + at, size - at, &code);
        used += (size_t)utf8_encode(code, out + used);
    }
    return (const char *)out;
}

span *spans_add(spans *s, const span *parent, const char *name, uint64_t start_ns)
{
    span *added = s->count < SPANS_MAX ? arena_take(&s->memory, sizeof *added) : NULL;
    const char *copy = added ? copy_text(s, name) : NULL;
    if (!copy) {
        s->lost++;
        return NULL;
    }
    *added = (span){.id = trace_make_span(),
                    .parent = parent ? parent->id : s->trace.parent,
                    .name = copy,
                    .kind = SPAN_INTERNAL,
                    .start_ns = start_ns,
                    .end_ns = start_ns};
    added->last_attribute = &added->attributes;
    if (s->last)
        s->last->next = added;
    else
        s->first = added;
    s->last = added;
    s->count++;
    return added;
}

void spans_name(spans *s, span *of, const char *name)
{
    const char *copy = of ? copy_text(s, name) : NULL;
    if (copy)
        of->name = copy;
}

/* NULL: no span, or no room, and then the span goes without it. */
static span_attribute *add(spans *s, span *of, const char *name, attribute_kind kind)
{
    span_attribute *a = of ? arena_take(&s->memory, sizeof *a) : NULL;
    if (!a)
        return NULL;
    *a = (span_attribute){.name = name, .kind = kind};
    *of->last_attribute = a;
    of->last_attribute = &a->next;
    return a;
}

void spans_text(spans *s, span *of, const char *name, const char *value)
{
    const char *copy = of ? copy_text(s, value) : NULL;
    span_attribute *a = copy ? add(s, of, name, ATTRIBUTE_TEXT) : NULL;
    if (a)
        a->text = copy;
}

void spans_int(spans *s, span *of, const char *name, int64_t value)
{
    span_attribute *a = add(s, of, name, ATTRIBUTE_INT);
    if (a)
        a->integer = value;
}

void spans_real(spans *s, span *of, const char *name, double value)
{
    span_attribute *a = add(s, of, name, ATTRIBUTE_REAL);
    if (a)
        a->real = value;
}

void spans_flag(spans *s, span *of, const char *name, int value)
{
    span_attribute *a = add(s, of, name, ATTRIBUTE_FLAG);
    if (a)
        a->integer = value != 0;
}

void spans_texts(spans *s, span *of, const char *name, const char *const *values, size_t count)
{
    const char **copies = of ? arena_take_array(&s->memory, count, sizeof *copies) : NULL;
    for (size_t i = 0; copies && i < count; i++)
        if (!(copies[i] = copy_text(s, values[i])))
            return;
    span_attribute *a = copies ? add(s, of, name, ATTRIBUTE_TEXTS) : NULL;
    if (!a)
        return;
    a->texts = copies;
    a->integer = (int64_t)count;
}
