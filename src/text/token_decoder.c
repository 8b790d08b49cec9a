/* text/token_decoder.c: token ids back to text, whole characters at a time. See tokenizer.h.
 *
 * A byte-level token may end in the middle of a character, so up to three bytes are held until the
 * next token shows what they become. What can never become a character goes out as U+FFFD, once for
 * each maximal part of one (Unicode 15, section 3.9), so the output is always well-formed UTF-8. */
#include <string.h>

#include "base/buffer.h"
#include "base/utf8.h"
#include "text/family.h"

#define REPLACEMENT "\xEF\xBF\xBD"

void token_decoder_init(token_decoder *d, const tokenizer *t, int with_special)
{
    *d = (token_decoder){.tokenizer = t, .with_special = with_special != 0};
}

/* Well-formed bytes pass in one go. */
static size_t well_formed_prefix(const uint8_t *text, size_t size)
{
    size_t at = 0;
    for (int length; at < size && (length = utf8_length(text + at, size - at)) > 0;)
        at += (size_t)length;
    return at;
}

/* Bytes that begin a character and are broken off: 1 to 3; text is ill formed at 0. */
static size_t broken_part(const uint8_t *text, size_t size)
{
    size_t part = 1;
    while (part < size && utf8_length(text, part + 1) == -2)
        part++;
    return part;
}

/* Adds what is complete in text and keeps the rest. held is empty. */
static realm_status add_text(token_decoder *d, const uint8_t *text, size_t size, buffer *out)
{
    realm_status status = REALM_OK;
    for (size_t at = 0; at < size && status == REALM_OK;) {
        size_t good = well_formed_prefix(text + at, size - at);
        status = buffer_add(out, text + at, good);
        at += good;
        if (at == size || status != REALM_OK)
            break;
        if (utf8_length(text + at, size - at) == -2) {
            d->held_size = (uint8_t)(size - at);
            memcpy(d->held, text + at, size - at);
            break;
        }
        at += broken_part(text + at, size - at);
        status = buffer_add_text(out, REPLACEMENT);
    }
    return status;
}

/* Moves bytes of text behind the held ones until these are a character or never will be. Returns how
 * many of text's bytes were used. */
static size_t complete_held(token_decoder *d, const uint8_t *text, size_t size, buffer *out,
                            realm_status *status)
{
    size_t used = 0;
    while (used < size && utf8_length(d->held, d->held_size) == -2) {
        d->held[d->held_size++] = text[used++];
        if (utf8_length(d->held, d->held_size) == -1) {
            d->held_size = 0;
            *status = buffer_add_text(out, REPLACEMENT);
            return used - 1; /* the byte that broke it may begin something of its own */
        }
    }
    if (utf8_length(d->held, d->held_size) > 0) {
        *status = buffer_add(out, d->held, d->held_size);
        d->held_size = 0;
    }
    return used;
}

realm_status token_decoder_add(token_decoder *d, token_id id, buffer *out)
{
    size_t size, used = 0;
    const uint8_t *text = (const uint8_t *)tokenizer_piece(d->tokenizer, id, d->with_special,
                                                           &size);
    if (d->at_start && size > 0 && *text == ' ') {
        text++;
        size--;
    }
    d->at_start = 0;
    realm_status status = REALM_OK;
    if (d->held_size > 0)
        used = complete_held(d, text, size, out, &status);
    return status == REALM_OK ? add_text(d, text + used, size - used, out) : status;
}

realm_status token_decoder_finish(token_decoder *d, buffer *out)
{
    int broken = d->held_size > 0;
    d->held_size = 0;
    return broken ? buffer_add_text(out, REPLACEMENT) : REALM_OK;
}

realm_status tokenizer_decode(const tokenizer *t, const token_id *ids, size_t count,
                              int with_special, buffer *out)
{
    token_decoder d;
    token_decoder_init(&d, t, with_special);
    d.at_start = (uint8_t)tokenizer_drops_first_space(t);
    realm_status status = REALM_OK;
    for (size_t i = 0; i < count && status == REALM_OK; i++)
        status = token_decoder_add(&d, ids[i], out);
    return status == REALM_OK ? token_decoder_finish(&d, out) : status;
}
