/* tests/unit/text/tokenizer_fuzz.c: any vocabulary over any text: no crash, ids inside the vocabulary, and
 * what was encoded decodes to well-formed UTF-8; where nothing but bytes was added, to itself.
 *
 * The input is: family, pre-tokenizer, number of tokens, then that many short tokens (a byte of kind and
 * length, the bytes), then the text. A broken piece of text is enough for a merge: "tok" gives "t ok". */
#include "base/utf8.h"
#include "text/pretokenizers.h"
#include "text/unicode.h"
#include "unit/text/tiny.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_TOKENS 300
#define MAX_TEXT   16

typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static uint8_t take(input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->at++;
}

static char texts[MAX_TOKENS][MAX_TEXT], pairs[MAX_TOKENS][MAX_TEXT + 1];
static tiny_token tokens[MAX_TOKENS];
static const char *merges[MAX_TOKENS];
static size_t token_count, merge_count;
static int is_raw; /* the pre-tokenizer looks for characters as they are, not for stand-ins */

static int is_new(const char *text)
{
    for (size_t i = 0; i < token_count; i++)
        if (strcmp(tokens[i].text, text) == 0)
            return 0;
    return 1;
}

static void add_token(const char *text, token_kind kind, float score)
{
    char *copy = texts[token_count]; /* the callers leave room for one more */
    snprintf(copy, MAX_TEXT, "%s", text);
    if (copy[0] && is_new(copy))
        tokens[token_count++] = (tiny_token){copy, kind, score};
}

static void add_bytes(int stand_ins)
{
    for (int byte = 0; byte < 256; byte++) {
        char text[MAX_TEXT] = {0};
        if (stand_ins)
            unicode_encode(unicode_of_byte((uint8_t)byte), (uint8_t *)text);
        else
            snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
        add_token(text, stand_ins ? TOKEN_NORMAL : TOKEN_BYTE, 0);
    }
}

/* A token of up to 7 bytes, and the merge that makes it of its first character and the rest. */
static void add_fuzzed(input *in)
{
    uint8_t head = take(in);
    char text[MAX_TEXT] = {0};
    for (int i = 0; i < (head & 7); i++)
        text[i] = (char)take(in);
    if (token_count >= MAX_TOKENS - 1)
        return;
    add_token(text, (token_kind)(head >> 3 & 7), (float)(head >> 6));
    size_t first = text[0] ? (size_t)unicode_length((uint8_t)text[0]) : 0;
    if (first && strlen(text) > first && merge_count < MAX_TOKENS) {
        snprintf(pairs[merge_count], sizeof pairs[0], "%.*s %s", (int)first, text, text + first);
        merges[merge_count] = pairs[merge_count];
        merge_count++;
    }
}

static tiny make(input *in)
{
    static const char *const models[] = {"llama", "gpt2", "gemma4", "bert", "whitespace"};
    tiny v = {.model = models[take(in) % 5], .tokens = tokens, .merges = merges};
    size_t row = take(in);
    const pretokenizer *pre = pretokenizers_at(row);
    v.pre = pre ? pre->name : NULL;
    is_raw = pre && pre->habits & PRE_RAW_UTF8;
    token_count = merge_count = 0;
    add_bytes(strcmp(v.model, "gpt2") == 0);
    for (size_t wanted = take(in) % 40; wanted > 0; wanted--)
        add_fuzzed(in);
    v.count = token_count;
    v.merge_count = merge_count;
    return v;
}

static void check(int truth)
{
    if (!truth)
        abort();
}

/* A byte-level vocabulary that was given no tokens of kinds that hide text, and is asked for its stand-ins, loses
 * nothing. */
static int spells_everything(const tokenizer *t)
{
    if (is_raw)
        return 0;
    for (size_t i = 0; i < tokenizer_count(t); i++)
        if (tokenizer_kind(t, (token_id)i) != TOKEN_NORMAL)
            return 0;
    return strcmp(tokenizer_model_name(t), "gpt2") == 0;
}

static void check_decoded(const tokenizer *t, const input *in, const token_id *ids, size_t count,
                          int plain)
{
    buffer out;
    buffer_init(&out, 1 << 24);
    check(tokenizer_decode(t, ids, count, 1, &out) == REALM_OK);
    check(out.size == 0 || utf8_valid((uint8_t *)out.data, out.size));
    if (plain && spells_everything(t) && utf8_valid(in->at, in->left))
        check(out.size == in->left && (!out.size || memcmp(out.data, in->at, out.size) == 0));
    buffer_release(&out);
}

static void encode(const tokenizer *t, const input *in, unsigned flags)
{
    arena a;
    token_id *ids;
    size_t count;
    realm_error error;
    arena_init(&a, 0);
    realm_status status = tokenizer_encode(t, &a, (const char *)in->at, in->left, flags, &ids,
                                           &count, &error);
    check(status == REALM_OK);
    for (size_t i = 0; i < count; i++)
        check(ids[i] >= 0 && (size_t)ids[i] < tokenizer_count(t));
    check_decoded(t, in, ids, count, flags == 0);
    arena_release(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    tiny v = make(&in);
    tokenizer *t;
    realm_error error;
    if (tiny_open(&t, &v, &error) != REALM_OK)
        return 0;
    encode(t, &in, 0);
    encode(t, &in, TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL);
    tokenizer_close(t);
    return 0;
}
