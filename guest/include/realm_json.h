/* realm_json.h: enough JSON for a program to read its request, without a libc and without a tree.
 *
 * Values are slices of the request's own text. The host has checked nothing: a request can be any
 * bytes, so each function stops at what is not JSON and says that there is no such value (size 0). */
#ifndef REALM_JSON_H
#define REALM_JSON_H

#include "realm_guest.h"

static inline size_t realm_json_blank(realm_slice s, size_t at)
{
    while (at < s.size &&
           (s.data[at] == ' ' || s.data[at] == '\n' || s.data[at] == '\t' || s.data[at] == '\r'))
        at++;
    return at;
}

/* Where the string that begins at s[at] == '"' ends: just past its closing quote; 0 if it does not. */
static inline size_t realm_json_string_end(realm_slice s, size_t at)
{
    for (at++; at < s.size; at++) {
        if (s.data[at] == '\\')
            at++;
        else if (s.data[at] == '"')
            return at + 1;
    }
    return 0;
}

/* Just past the value that begins at s[at]; 0 if there is none. Objects and lists are skipped by
 * counting brackets outside of strings. */
static inline size_t realm_json_value_end(realm_slice s, size_t at)
{
    if (at >= s.size)
        return 0;
    if (s.data[at] == '"')
        return realm_json_string_end(s, at);
    if (s.data[at] == '{' || s.data[at] == '[') {
        size_t depth = 0;
        while (at < s.size) {
            char c = s.data[at];
            if (c == '"') {
                at = realm_json_string_end(s, at);
                if (!at)
                    return 0;
                continue;
            }
            if (c == '{' || c == '[')
                depth++;
            if (c == '}' || c == ']')
                depth--;
            at++;
            if (!depth)
                return at;
        }
        return 0;
    }
    size_t start = at;
    while (at < s.size && s.data[at] != ',' && s.data[at] != '}' && s.data[at] != ']' &&
           s.data[at] != ' ' && s.data[at] != '\n' && s.data[at] != '\r' && s.data[at] != '\t')
        at++;
    return at > start ? at : 0;
}

/* The text of the value under key in the object s ("\"hi\"", "12", "[1,2]"); size 0 if there is none.
 * Keys are compared as they are written: a key with escapes is not found. */
static inline realm_slice realm_json_get(realm_slice s, const char *key)
{
    const realm_slice none = {0, 0};
    size_t at = realm_json_blank(s, 0);
    if (at >= s.size || s.data[at] != '{')
        return none;
    at = realm_json_blank(s, at + 1);
    while (at < s.size && s.data[at] == '"') {
        size_t end = realm_json_string_end(s, at);
        if (!end)
            return none;
        realm_slice name = {s.data + at + 1, end - at - 2};
        at = realm_json_blank(s, end);
        if (at >= s.size || s.data[at] != ':')
            return none;
        at = realm_json_blank(s, at + 1);
        end = realm_json_value_end(s, at);
        if (!end)
            return none;
        if (realm_equal(name, key))
            return (realm_slice){s.data + at, end - at};
        at = realm_json_blank(s, end);
        if (at >= s.size || s.data[at] != ',')
            return none;
        at = realm_json_blank(s, at + 1);
    }
    return none;
}

/* Walks a list: start with *at 0; size 0 at the end. */
static inline realm_slice realm_json_next(realm_slice list, size_t *at)
{
    const realm_slice none = {0, 0};
    size_t i = realm_json_blank(list, *at);
    if (i >= list.size || (list.data[i] != '[' && list.data[i] != ','))
        return none;
    i = realm_json_blank(list, i + 1);
    size_t end = realm_json_value_end(list, i);
    if (!end)
        return none;
    *at = end;
    return (realm_slice){list.data + i, end - i};
}

static inline bool realm_json_is_string(realm_slice value)
{
    return value.size >= 2 && value.data[0] == '"';
}

static inline uint32_t realm_json_hex4(const char *digits)
{
    uint32_t code = 0;
    for (int i = 0; i < 4; i++) {
        char c = digits[i];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10
                                                : 16;
        if (digit == 16)
            return 0xFFFD;
        code = code << 4 | digit;
    }
    return code;
}

/* The characters of a JSON string value; size 0 for an empty string and for what is no string. */
static inline realm_slice realm_json_string(realm_slice value)
{
    const realm_slice none = {"", 0};
    if (!realm_json_is_string(value))
        return none;
    char *out = realm_alloc(value.size);
    if (!out)
        return none;
    size_t used = 0;
    for (size_t i = 1; i + 1 < value.size; i++) {
        char c = value.data[i];
        if (c != '\\') {
            out[used++] = c;
            continue;
        }
        c = value.data[++i];
        switch (c) {
        case 'n': out[used++] = '\n'; break;
        case 't': out[used++] = '\t'; break;
        case 'r': out[used++] = '\r'; break;
        case 'b': out[used++] = '\b'; break;
        case 'f': out[used++] = '\f'; break;
        case 'u': {
            if (i + 4 >= value.size)
                return none;
            uint32_t code = realm_json_hex4(value.data + i + 1);
            i += 4;
            if (code >= 0xD800 && code < 0xDC00 && i + 6 < value.size &&
                value.data[i + 1] == '\\' && value.data[i + 2] == 'u') {
                uint32_t low = realm_json_hex4(value.data + i + 3);
                if (low >= 0xDC00 && low < 0xE000) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    i += 6;
                }
            }
            if (code >= 0xD800 && code < 0xE000)
                code = 0xFFFD;
            if (code < 0x80) {
                out[used++] = (char)code;
            } else if (code < 0x800) {
                out[used++] = (char)(0xC0 | code >> 6);
                out[used++] = (char)(0x80 | (code & 63));
            } else if (code < 0x10000) {
                out[used++] = (char)(0xE0 | code >> 12);
                out[used++] = (char)(0x80 | (code >> 6 & 63));
                out[used++] = (char)(0x80 | (code & 63));
            } else {
                out[used++] = (char)(0xF0 | code >> 18);
                out[used++] = (char)(0x80 | (code >> 12 & 63));
                out[used++] = (char)(0x80 | (code >> 6 & 63));
                out[used++] = (char)(0x80 | (code & 63));
            }
            break;
        }
        default: out[used++] = c; break;
        }
    }
    return (realm_slice){out, used};
}

/* A whole number, or fallback where there is none. */
static inline int64_t realm_json_int(realm_slice value, int64_t fallback)
{
    size_t at = 0;
    bool negative = value.size && value.data[0] == '-';
    if (negative)
        at++;
    if (at == value.size)
        return fallback;
    uint64_t number = 0;
    for (; at < value.size; at++) {
        if (value.data[at] < '0' || value.data[at] > '9' || number > 99999999999999999u)
            return fallback;
        number = number * 10 + (uint64_t)(value.data[at] - '0');
    }
    return negative ? -(int64_t)number : (int64_t)number;
}

static inline bool realm_json_true(realm_slice value)
{
    return realm_equal(value, "true");
}

#endif
