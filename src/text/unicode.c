/* text/unicode.c: see unicode.h. utf8proc knows the characters; what Unicode 15.1 added to Debian 12's
 * utf8proc (15.0) stands here. */
#include "text/unicode.h"

#include <utf8proc.h>

typedef struct code_range {
    uint32_t first, last;
} code_range;

static int in_ranges(uint32_t code, const code_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (code >= ranges[i].first && code <= ranges[i].last)
            return 1;
    return 0;
}

#define IN_RANGES(code, ranges) in_ranges(code, ranges, sizeof(ranges) / sizeof *(ranges))

/* Everything that Unicode 15.1 assigned: CJK extension I and five description characters. */
static unicode_class class_since_15_1(uint32_t code)
{
    if (code >= 0x2EBF0 && code <= 0x2EE5D)
        return UNICODE_LETTER;
    if ((code >= 0x2FFC && code <= 0x2FFF) || code == 0x31EF)
        return UNICODE_SYMBOL;
    return UNICODE_UNASSIGNED;
}

unicode_class unicode_class_of(uint32_t code)
{
    if (code > 0x10FFFF)
        return UNICODE_UNASSIGNED;
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return UNICODE_LETTER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME: return UNICODE_MARK;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return UNICODE_NUMBER;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return UNICODE_PUNCTUATION;
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO: return UNICODE_SYMBOL;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return UNICODE_SEPARATOR;
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO: return UNICODE_CONTROL;
    default: return class_since_15_1(code);
    }
}

int unicode_is_space(uint32_t code)
{
    static const code_range spaces[] = {
        {0x09, 0x0D},     {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
        {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
    };
    return IN_RANGES(code, spaces);
}

int unicode_is_han(uint32_t code)
{
    static const code_range blocks[] = {
        {0x4E00, 0x9FFF},   /* unified ideographs */
        {0x3400, 0x4DBF},   /* extension A */
        {0x20000, 0x2A6DF}, /* B */
        {0x2A700, 0x2EBEF}, /* C to F */
        {0xF900, 0xFAFF},   /* compatibility ideographs */
        {0x2F800, 0x2FA1F}, /* and their supplement */
    };
    return IN_RANGES(code, blocks);
}

uint32_t unicode_lower(uint32_t code)
{
    return code <= 0x10FFFF ? (uint32_t)utf8proc_tolower((utf8proc_int32_t)code) : code;
}

uint32_t unicode_base(uint32_t code)
{
    utf8proc_int32_t parts[32]; /* the longest canonical decomposition has four */
    int boundary = 0;
    if (code > 0x10FFFF)
        return code;
    utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)code, parts, 32,
                                                     UTF8PROC_DECOMPOSE, &boundary);
    return count > 0 ? (uint32_t)parts[0] : code;
}

static int is_continuation(const uint8_t *text, size_t size, size_t index)
{
    return index < size && (text[index] & 0xC0) == 0x80;
}

int unicode_decode(const uint8_t *text, size_t size, uint32_t *code)
{
    uint8_t lead = text[0];
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    int length = lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF8 ? 4 : 0;
    uint32_t value = length ? lead & (0x7Fu >> length) : 0;
    for (int i = 1; i < length; i++) {
        if (!is_continuation(text, size, (size_t)i)) {
            length = 0;
            break;
        }
        value = value << 6 | (text[i] & 0x3F);
    }
    if (length == 0 || value > 0x10FFFF) {
        *code = 0xFFFD;
        return 1;
    }
    *code = value;
    return length;
}

int unicode_encode(uint32_t code, uint8_t out[4])
{
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--) {
        out[i] = (uint8_t)(0x80 | (code & 0x3F));
        code >>= 6;
    }
    out[0] = (uint8_t)((0xF00u >> length & 0xF0) | code);
    return length;
}

int unicode_length(uint8_t lead)
{
    return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* The printable part of Latin-1 in GPT-2's sense: no spaces, no controls, no soft hyphen. */
static int stands_for_itself(uint32_t code)
{
    return (code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xFF && code != 0xAD);
}

uint32_t unicode_of_byte(uint8_t byte)
{
    if (stands_for_itself(byte))
        return byte;
    /* The others in order: 0x00-0x20, 0x7F-0xA0, 0xAD. */
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte == 0xAD ? 0x143u : 0x121u + byte - 0x7Fu;
}

int unicode_to_byte(uint32_t code)
{
    if (stands_for_itself(code))
        return (int)code;
    if (code >= 0x100 && code <= 0x120)
        return (int)(code - 0x100);
    if (code >= 0x121 && code <= 0x142)
        return (int)(code - 0x121 + 0x7F);
    return code == 0x143 ? 0xAD : -1;
}
