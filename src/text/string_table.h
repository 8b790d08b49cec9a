/* text/string_table.h: byte strings and the dense ids they were given, in order of adding.
 *
 * A vocabulary and the parts of its merges are one such table. It borrows the strings, which stay
 * where they are (the tokenizer's arena, or the text of a gguf while it is being read). Filled by one
 * thread, then constant.
 *
 * The hash goes byte by byte, so that whoever tries every length of a prefix, as WordPiece does,
 * hashes each byte once. It is not seeded: strings looked up at run time meet a table that no longer
 * changes, so text can only hit clusters that the model's file has made. */
#ifndef REALM_TEXT_STRING_TABLE_H
#define REALM_TEXT_STRING_TABLE_H

#include <stddef.h>
#include <stdint.h>

typedef struct string_slot {
    uint32_t tag;   /* upper half of the hash: spares most comparisons */
    uint32_t entry; /* id + 1; 0: free */
} string_slot;

typedef struct string_entry {
    const char *text;
    uint32_t size;
    uint32_t tag;
    uint32_t home; /* lower half of the hash: where the search begins */
} string_entry;

typedef struct string_table {
    string_slot *slots;
    string_entry *entries;
    size_t slot_count; /* a power of two, at least twice the entries */
    size_t count, capacity;
} string_table;

/* Room for capacity strings at first; it grows when need be. 0 if memory is out, else 1. */
int string_table_init(string_table *t, size_t capacity);
void string_table_release(string_table *t);

/* The string's id, which is new (t->count - 1) if it was not there. -1 if memory is out. */
int32_t string_table_add(string_table *t, const char *text, size_t size);

/* The id, or -1. */
int32_t string_table_find(const string_table *t, const char *text, size_t size);

#define STRING_TABLE_HASH_START 0xCBF29CE484222325u

static inline uint64_t string_table_hash_byte(uint64_t hash, uint8_t byte)
{
    return (hash ^ byte) * 0x100000001B3u; /* FNV-1a, folded in string_table_find_hashed */
}

/* The same for text whose bytes have been hashed one by one. */
int32_t string_table_find_hashed(const string_table *t, const char *text, size_t size,
                                 uint64_t hash);

#endif
