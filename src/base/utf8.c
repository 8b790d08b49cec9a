/* base/utf8.c: see utf8.h. The accepted second-byte ranges are Unicode 15, table 3-7. */
#include "base/utf8.h"

int utf8_length(const uint8_t *text, size_t size)
{
    if (size == 0)
        return 0;
    uint8_t lead = text[0];
    if (lead < 0x80)
        return 1;
    uint8_t low = 0x80, high = 0xBF;
    int length;
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        if (lead == 0xE0)
            low = 0xA0;
        if (lead == 0xED)
            high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        if (lead == 0xF0)
            low = 0x90;
        if (lead == 0xF4)
            high = 0x8F;
    } else {
        return -1;
    }
    for (int i = 1; i < length; i++) {
        if ((size_t)i == size)
            return -2;
        if (text[i] < low || text[i] > high)
            return -1;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

int utf8_decode(const uint8_t *text, size_t size, uint32_t *code)
{
    int length = utf8_length(text, size);
    switch (length) {
    case 0: *code = 0; return 0;
    case 1: *code = text[0]; return 1;
    case 2: *code = (uint32_t)(text[0] & 0x1F) << 6 | (text[1] & 0x3F); return 2;
    case 3:
        *code = (uint32_t)(text[0] & 0x0F) << 12 | (uint32_t)(text[1] & 0x3F) << 6 |
                (text[2] & 0x3F);
        return 3;
    case 4:
        *code = (uint32_t)(text[0] & 0x07) << 18 | (uint32_t)(text[1] & 0x3F) << 12 |
                (uint32_t)(text[2] & 0x3F) << 6 | (text[3] & 0x3F);
        return 4;
    default: *code = UTF8_REPLACEMENT; return 1;
    }
}

int utf8_encode(uint32_t code, uint8_t out[4])
{
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xC0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code >= 0xD800 && code <= 0xDFFF)
        return 0;
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xE0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    if (code > 0x10FFFF)
        return 0;
    out[0] = (uint8_t)(0xF0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}

size_t utf8_complete_prefix(const uint8_t *text, size_t size)
{
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        const uint8_t *at = text + size - back;
        if ((*at & 0xC0) == 0x80)
            continue;
        return utf8_length(at, back) == -2 ? size - back : size;
    }
    return size;
}

int utf8_valid(const uint8_t *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        int length = utf8_length(text + i, size - i);
        if (length <= 0)
            return 0;
        i += (size_t)length;
    }
    return 1;
}
