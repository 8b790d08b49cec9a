/* cli/cmd_tokenize.c: `realm tokenize`: text into token ids, and back.
 *
 * Needs a file's vocabulary alone, so a GGUF file without weights does. Text is bytes: what is not
 * UTF-8 reaches the tokenizer as it is, and standard input is read to the last byte. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "formats/json.h"
#include "text/tokenizer.h"

#define MAX_INPUT_BYTES (256u << 20)

typedef struct request {
    const char *model, *text;
    int json, no_special, decode, null_separated;
} request;

/* ---- printing ---- */

/* One line's worth of a piece: control characters and broken bytes as \n, \t, \xE2. */
static void print_escaped(const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        uint32_t code = (uint8_t)text[i];
        int length = utf8_length((const uint8_t *)text + i, size - i);
        if (length > 0)
            utf8_decode((const uint8_t *)text + i, size - i, &code);
        if (code == '\n')
            fputs("\\n", stdout);
        else if (code == '\t')
            fputs("\\t", stdout);
        else if (code == '\\')
            fputs("\\\\", stdout);
        else if (length <= 0 || code < 0x20 || code == 0x7F)
            printf("\\x%02X", (unsigned)(uint8_t)text[i]);
        else if (code < 0xA0 && code > 0x7F) /* control characters of two bytes */
            printf("\\x%02X\\x%02X", (unsigned)(uint8_t)text[i], (unsigned)(uint8_t)text[i + 1]);
        else
            fwrite(text + i, 1, (size_t)length, stdout);
        i += length > 0 ? (size_t)length : 1;
    }
}

static void print_lines(const tokenizer *t, const token_id *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *piece = tokenizer_piece(t, ids[i], 1, &size);
        printf("%d\t", ids[i]);
        print_escaped(piece, size);
        putchar('\n');
    }
}

static int piece_is_text(const tokenizer *t, token_id id)
{
    size_t size;
    const char *piece = tokenizer_piece(t, id, 1, &size);
    return utf8_valid((const uint8_t *)piece, size);
}

/* Pieces that are no text by themselves, in hexadecimal, by their place in the list. */
static void print_json_bytes(const tokenizer *t, const token_id *ids, size_t count)
{
    const char *before = ",\"bytes\":{";
    for (size_t i = 0; i < count; i++) {
        if (piece_is_text(t, ids[i]))
            continue;
        size_t size;
        const char *piece = tokenizer_piece(t, ids[i], 1, &size);
        printf("%s\"%zu\":\"", before, i);
        for (size_t at = 0; at < size; at++)
            printf("%02x", (unsigned)(uint8_t)piece[at]);
        putchar('"');
        before = ",";
    }
    if (*before == ',' && before[1] == '\0')
        putchar('}');
}

static void print_json(const tokenizer *t, const token_id *ids, size_t count)
{
    fputs("{\"tokens\":[", stdout);
    for (size_t i = 0; i < count; i++)
        printf(i ? ",%d" : "%d", ids[i]);
    fputs("],\"pieces\":[", stdout);
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *piece = tokenizer_piece(t, ids[i], 1, &size);
        if (i)
            putchar(',');
        json_print_text(stdout, piece, size);
    }
    printf("],\"count\":%zu", count);
    print_json_bytes(t, ids, count);
    fputs("}\n", stdout);
}

/* ---- the two directions ---- */

static realm_status encode(const request *r, const tokenizer *t, const char *text, size_t size,
                           realm_error *error)
{
    arena a;
    arena_init(&a, 0);
    token_id *ids;
    size_t count;
    unsigned flags = r->no_special ? 0 : TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL;
    realm_status status = tokenizer_encode(t, &a, text, size, flags, &ids, &count, error);
    if (status == REALM_OK && r->json)
        print_json(t, ids, count);
    else if (status == REALM_OK)
        print_lines(t, ids, count);
    arena_release(&a);
    return status;
}

/* Reads "1, 2 3" (commas and white space) into the arena. */
static realm_status read_ids(const tokenizer *t, arena *a, const char *text, size_t size,
                             token_id **ids, size_t *count, realm_error *error)
{
    *ids = arena_take_array(a, size / 2 + 1, sizeof **ids);
    char *copy = arena_copy(a, text, size); /* terminated, for strtol */
    if (!*ids || !copy)
        return realm_fail_memory(error, size, "a list of ids");
    *count = 0;
    for (char *at = copy;;) {
        at += strspn(at, ", \t\r\n[]");
        if (*at == '\0')
            break;
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno || id < 0 || (size_t)id >= tokenizer_count(t))
            return realm_fail(error, REALM_INVALID, "'%.20s' is not a token id from 0 to %zu", at,
                              tokenizer_count(t) - 1);
        (*ids)[(*count)++] = (token_id)id;
        at = end;
    }
    return REALM_OK;
}

static realm_status decode(const request *r, const tokenizer *t, const char *text, size_t size,
                           realm_error *error)
{
    arena a;
    buffer out;
    arena_init(&a, 0);
    buffer_init(&out, SIZE_MAX / 2);
    token_id *ids;
    size_t count = 0;
    realm_status status = read_ids(t, &a, text, size, &ids, &count, error);
    if (status == REALM_OK) {
        status = tokenizer_decode(t, ids, count, !r->no_special, &out);
        if (status != REALM_OK)
            realm_fail_memory(error, out.size, "the text");
    }
    if (status == REALM_OK && r->json) {
        fputs("{\"text\":", stdout);
        json_print_text(stdout, out.data ? out.data : "", out.size);
        fputs("}\n", stdout);
    } else if (status == REALM_OK && out.size > 0) {
        fwrite(out.data, 1, out.size, stdout);
    }
    buffer_release(&out);
    arena_release(&a);
    return status;
}

static realm_status one(const request *r, const tokenizer *t, const char *text, size_t size,
                        realm_error *error)
{
    return (r->decode ? decode : encode)(r, t, text, size, error);
}

/* Texts that each end with a zero byte. */
static realm_status many(const request *r, const tokenizer *t, const char *text, size_t size,
                         realm_error *error)
{
    realm_status status = REALM_OK;
    for (size_t start = 0; start < size && status == REALM_OK;) {
        const char *end = memchr(text + start, '\0', size - start);
        size_t length = end ? (size_t)(end - text) - start : size - start;
        status = one(r, t, text + start, length, error);
        start += length + 1;
    }
    return status;
}

static realm_status work(const request *r, const char *text, size_t size, realm_error *error)
{
    gguf *g = NULL;
    tokenizer *t = NULL;
    realm_status status = gguf_open(&g, r->model, error);
    if (status != REALM_OK)
        return status;
    status = tokenizer_open(&t, g, error);
    gguf_close(g); /* the tokenizer borrows nothing */
    if (status != REALM_OK)
        return realm_fail_in(error, status, "%s", r->model);
    status = (r->null_separated ? many : one)(r, t, text, size, error);
    tokenizer_close(t);
    return status;
}

static int run(const request *r)
{
    realm_error error;
    arena input;
    char *read = NULL;
    size_t size = strlen(r->text);
    arena_init(&input, 0);
    realm_status status = REALM_OK;
    if (strcmp(r->text, "-") == 0)
        status = file_read(&input, "-", MAX_INPUT_BYTES, &read, &size, &error);
    if (status == REALM_OK)
        status = work(r, read ? read : r->text, size, &error);
    arena_release(&input);
    if (status == REALM_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = realm_fail(&error, REALM_IO, "standard output: %s", strerror(errno));
    return status == REALM_OK ? EXIT_OK : command_failed("tokenize", &error);
}

int cmd_tokenize(int argc, char **argv)
{
    request r = {0};
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &r.model,
         .value = "FILE",
         .required = 1,
         .help = "the GGUF file; one that holds a vocabulary alone will do"},
        {.name = "json",
         .kind = OPTION_FLAG,
         .out = &r.json,
         .help =
             "print {\"tokens\":[...],\"pieces\":[...],\"count\":N}; \"bytes\" has, by place, the "
             "pieces that are not UTF-8"},
        {.name = "no-special",
         .kind = OPTION_FLAG,
         .out = &r.no_special,
         .help = "add no BOS or EOS, and read the text of special tokens as plain text"},
        {.name = "decode",
         .kind = OPTION_FLAG,
         .out = &r.decode,
         .help = "TEXT is token ids; print the text they stand for, and nothing after it"},
        {.name = "null",
         .letter = '0',
         .kind = OPTION_FLAG,
         .out = &r.null_separated,
         .help = "TEXT is many texts, each ended by a zero byte (of standard input)"},
        {0}};
    const options_positional positionals[] = {
        {.name = "TEXT",
         .out = &r.text,
         .required = 1,
         .help = "the text, or - to read standard input to its last byte"},
        {0}};
    const options_command command = {
        .name = "tokenize",
        .summary = "turn text into token ids",
        .options = options,
        .positionals = positionals,
        .notes = "Prints one token a line: its id, a tab, and its piece of the text.\n"
                 "\n"
                 "  realm tokenize --model model.gguf 'Hello, world'\n"
                 "  realm tokenize --model model.gguf --json - < file.txt\n"
                 "  realm tokenize --model model.gguf --decode '1 2 3'\n",
    };
    int code = options_parse(&command, argc, argv);
    return code != OPTIONS_GO_ON ? code : run(&r);
}
