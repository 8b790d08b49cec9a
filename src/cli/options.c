/* cli/options.c: see options.h. Parsing first, then the help that is printed from the same
 * tables. */
#include "cli/options.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/terminal.h"

#define LONGEST_NAME 32

/* ---- the nearest name ---- */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Optimal string alignment distance: Levenshtein's with swaps of neighbours. Words longer than any
 * name are simply far. */
static size_t distance(const char *a, const char *b)
{
    size_t rows[3][LONGEST_NAME + 1];
    size_t a_size = strlen(a), b_size = strlen(b);
    if (a_size > LONGEST_NAME || b_size > LONGEST_NAME)
        return LONGEST_NAME;
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= b_size; j++)
        above[j] = j;
    for (size_t i = 1; i <= a_size; i++) {
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            row[j] = least(least(above[j], row[j - 1]) + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], before[j - 2] + 1);
        }
        size_t *spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[b_size];
}

const char *options_nearest(const char *word, const char *const *names, size_t count)
{
    const char *nearest = NULL;
    size_t size = strlen(word);
    size_t best = size / 3 + 2; /* a third of the letters and one may be wrong */
    for (size_t i = 0; i < count; i++) {
        size_t far = distance(word, names[i]);
        if (far < best && far < strlen(names[i])) {
            best = far;
            nearest = names[i];
        }
    }
    /* "--max" for "--max-tokens": not near in letters, but surely meant. */
    for (size_t i = 0; !nearest && size >= 3 && i < count; i++)
        if (strncmp(word, names[i], size) == 0)
            nearest = names[i];
    return nearest;
}

/* ---- parsing ---- */

int options_wrong(const options_command *command, const char *format, ...)
{
    realm_error said;
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(&said, REALM_INVALID, format, arguments);
    va_end(arguments);
    fprintf(stderr, "realm %s: %s (see realm %s --help)\n", command->name, said.message,
            command->name);
    return EXIT_USAGE;
}

static const option *find_name(const option *options, const char *name, size_t size)
{
    for (; options->name; options++)
        if (strlen(options->name) == size && memcmp(options->name, name, size) == 0)
            return options;
    return NULL;
}

static const option *find_letter(const option *options, char letter)
{
    for (; options->name; options++)
        if (letter && options->letter == letter)
            return options;
    return NULL;
}

static int wrong_name(const options_command *command, const char *name)
{
    const char *names[64];
    size_t count = 0;
    for (const option *o = command->options; o->name && count < 63; o++)
        names[count++] = o->name;
    names[count++] = "help";
    const char *nearest = options_nearest(name, names, count);
    if (nearest)
        return options_wrong(command, "there is no option --%s; did you mean --%s?", name, nearest);
    return options_wrong(command, "there is no option --%s", name);
}

static int has_limits(const option *o)
{
    return o->min != 0 || o->max != 0;
}

static int inside_limits(const option *o, double number)
{
    return !has_limits(o) || (number >= o->min && number <= o->max);
}

/* "4k", "2m" and "1g" count 1024s, as contexts and memory are counted. */
static int read_int(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || errno == ERANGE)
        return 0;
    static const char suffixes[] = "kKmMgG";
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;
    int shift = suffix ? (int)((suffix - suffixes) / 2 + 1) * 10 : 0;
    if (suffix)
        end++;
    long long whole;
    if (*end || __builtin_mul_overflow(number, 1LL << shift, &whole))
        return 0;
    *out = whole;
    return 1;
}

static realm_status wrong_number(const option *o, const char *shown, const char *text,
                                 realm_error *error)
{
    const char *kind = o->kind == OPTION_INT ? "a whole number" : "a number";
    if (!has_limits(o))
        return realm_fail(error, REALM_INVALID, "%s wants %s, not '%.80s'", shown, kind, text);
    char limits[2][32];
    for (int i = 0; i < 2; i++) {
        double limit = i ? o->max : o->min;
        if (o->kind == OPTION_INT)
            snprintf(limits[i], sizeof limits[i], "%.0f", limit);
        else
            snprintf(limits[i], sizeof limits[i], "%.15g", limit);
    }
    return realm_fail(error, REALM_INVALID, "%s wants %s from %s to %s, not '%.80s'", shown, kind,
                      limits[0], limits[1], text);
}

static realm_status add_to_list(option_list *list, const char *shown, const char *text, int source,
                                realm_error *error)
{
    if (list->source != source)
        list->count = 0;
    list->source = source;
    if (list->count == OPTION_MAX_LIST)
        return realm_fail(error, REALM_INVALID, "%s is given more than %d times", shown,
                          OPTION_MAX_LIST);
    list->items[list->count++] = text;
    return REALM_OK;
}

static realm_status read_value(const option *o, const char *shown, const char *text, int source,
                               realm_error *error)
{
    switch (o->kind) {
    case OPTION_FLAG:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return realm_fail(error, REALM_INVALID, "%s wants true or false, not '%.80s'", shown,
                              text);
        *(int *)o->out = *text == 't';
        break;
    case OPTION_TEXT: *(const char **)o->out = text; break;
    case OPTION_LIST: return add_to_list(o->out, shown, text, source, error);
    case OPTION_INT: {
        int64_t number;
        if (!read_int(text, &number) || !inside_limits(o, (double)number))
            return wrong_number(o, shown, text, error);
        *(int64_t *)o->out = number;
        break;
    }
    case OPTION_REAL: {
        char *end;
        double number = strtod(text, &end);
        if (end == text || *end || !isfinite(number) || !inside_limits(o, number))
            return wrong_number(o, shown, text, error);
        *(double *)o->out = number;
        break;
    }
    }
    return REALM_OK;
}

realm_status options_set(const options_command *command, const char *name, const char *text,
                         const char *shown, int source, realm_error *error)
{
    const option *o = find_name(command->options, name, strlen(name));
    if (!o)
        return realm_fail(error, REALM_NOT_FOUND, "there is no setting '%.80s'", name);
    return read_value(o, shown, text, source, error);
}

/* What is known while the arguments are walked. */
typedef struct walk {
    const options_command *command;
    char **argv;
    int argc, at;
    uint64_t given; /* see bit_of */
} walk;

/* The row's bit in walk.given; a command has at most 64 options. */
static uint64_t bit_of(const options_command *command, const option *o)
{
    size_t row = (size_t)(o - command->options);
    assert(row < 64);
    return (uint64_t)1 << row;
}

/* Reads one option whose name has been understood; value is what followed '=' or NULL. */
static int take_option(walk *w, const option *o, const char *value)
{
    w->given |= bit_of(w->command, o);
    if (o->kind == OPTION_FLAG) {
        if (value)
            return options_wrong(w->command, "--%s takes no value", o->name);
        *(int *)o->out = 1;
        return OPTIONS_GO_ON;
    }
    if (!value) {
        if (w->at + 1 >= w->argc)
            return options_wrong(w->command, "--%s needs a value (%s)", o->name, o->value);
        value = w->argv[w->at + 1];
        if (value[0] == '-' && value[1] == '-')
            return options_wrong(w->command,
                                 "--%s needs a value (%s); if it is '%.80s', write --%s=%.80s",
                                 o->name, o->value, value, o->name, value);
        w->at++;
    }
    char shown[LONGEST_NAME + 3];
    realm_error error;
    snprintf(shown, sizeof shown, "--%s", o->name);
    if (read_value(o, shown, value, 0, &error))
        return options_wrong(w->command, "%s", error.message);
    return OPTIONS_GO_ON;
}

static int print_help(const options_command *command);

static int take_argument(walk *w)
{
    char *text = w->argv[w->at];
    if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0)
        return print_help(w->command);
    if (text[1] != '-') {
        const option *o = find_letter(w->command->options, text[1]);
        if (!o || text[2])
            return options_wrong(w->command, "there is no option %.80s", text);
        return take_option(w, o, NULL);
    }
    const char *name = text + 2, *equals = strchr(name, '=');
    size_t size = equals ? (size_t)(equals - name) : strlen(name);
    const option *o = find_name(w->command->options, name, size);
    if (!o) {
        char word[81];
        snprintf(word, sizeof word, "%.*s", (int)least(size, 80), name);
        return wrong_name(w->command, word);
    }
    return take_option(w, o, equals ? equals + 1 : NULL);
}

static int take_positionals(const options_command *command, char **found, int count)
{
    const options_positional *p = command->positionals;
    int at = 0;
    for (; p && p->name; p++) {
        if (at == count && p->required)
            return options_wrong(command, "%s is missing", p->name);
        if (p->rest) {
            *p->rest = found + at;
            *p->rest_count = count - at;
            at = count;
        } else if (at < count) {
            *p->out = found[at++];
        }
    }
    if (at < count)
        return options_wrong(command, "one argument too many: '%.80s'", found[at]);
    return OPTIONS_GO_ON;
}

int options_parse(const options_command *command, int argc, char **argv)
{
    walk w = {.command = command, .argv = argv, .argc = argc, .at = 1};
    char **found = argv + 1; /* positional arguments gather here; never ahead of w.at */
    int count = 0, only_positionals = 0;
    for (; w.at < argc; w.at++) {
        char *text = argv[w.at];
        if (only_positionals || text[0] != '-' || !text[1]) {
            found[count++] = text;
        } else if (strcmp(text, "--") == 0) {
            only_positionals = 1;
        } else {
            int code = take_argument(&w);
            if (code != OPTIONS_GO_ON)
                return code;
        }
    }
    for (const option *o = command->options; o->name; o++)
        if (o->required && !(w.given & bit_of(command, o)))
            return options_wrong(command, "--%s %s is missing", o->name, o->value);
    return take_positionals(command, found, count);
}

realm_status options_int_list(const char *text, int64_t min, int64_t max, int64_t *out,
                              size_t out_count, size_t *count, realm_error *error)
{
    *count = 0;
    for (const char *at = text;; at++) {
        char word[32];
        size_t size = strcspn(at, ",");
        int64_t number = 0;
        snprintf(word, sizeof word, "%.*s", (int)least(size, sizeof word - 1), at);
        if (size >= sizeof word || !read_int(word, &number) || number < min || number > max)
            return realm_fail(error, REALM_INVALID,
                              "'%.80s' is not a list of numbers from %" PRId64 " to %" PRId64
                              " with commas between",
                              text, min, max);
        if (*count == out_count)
            return realm_fail(error, REALM_INVALID, "'%.80s' holds more than %zu numbers", text,
                              out_count);
        out[(*count)++] = number;
        at += size;
        if (!*at)
            return REALM_OK;
    }
}

/* ---- help ---- */

#define HELP_COLUMN 28 /* where explanations start */

/* Prints text from column HELP_COLUMN on, broken between words before width. */
static void print_wrapped(const char *text, int column, int width)
{
    for (const char *word = text; *word;) {
        int size = (int)strcspn(word, " ");
        if (column + 1 + size > width && column > HELP_COLUMN) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (word != text) {
            putchar(' ');
            column++;
        }
        printf("%.*s", size, word);
        column += size;
        word += size;
        while (*word == ' ')
            word++;
    }
    putchar('\n');
}

static void print_row(const char *left, const char *explanation, int width)
{
    printf("%s%s%s", terminal_style_text(stdout, STYLE_BOLD), left,
           terminal_style_text(stdout, STYLE_PLAIN));
    int column = (int)strlen(left);
    if (column + 2 > HELP_COLUMN) {
        putchar('\n');
        column = 0;
    }
    printf("%*s", HELP_COLUMN - column, "");
    print_wrapped(explanation, HELP_COLUMN, width);
}

/* " (default 64)" if there is one to tell; see option.out. */
static void describe_default(const option *o, char *text, size_t size)
{
    text[0] = 0;
    if (o->required)
        snprintf(text, size, " (required)");
    else if (o->kind == OPTION_INT && inside_limits(o, (double)*(int64_t *)o->out))
        snprintf(text, size, " (default %" PRId64 ")", *(int64_t *)o->out);
    else if (o->kind == OPTION_REAL && inside_limits(o, *(double *)o->out))
        snprintf(text, size, " (default %g)", *(double *)o->out);
    else if (o->kind == OPTION_TEXT && *(const char **)o->out)
        snprintf(text, size, " (default %s)", *(const char **)o->out);
}

static void print_option(const option *o, int width)
{
    char left[80], usual[160], explanation[1024], letter[8] = "    ";
    if (o->letter)
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, o->value ? " " : "",
             o->value ? o->value : "");
    describe_default(o, usual, sizeof usual);
    snprintf(explanation, sizeof explanation, "%s%s", o->help, usual);
    print_row(left, explanation, width);
}

static int print_help(const options_command *command)
{
    const char *bold = terminal_style_text(stdout, STYLE_BOLD);
    const char *plain = terminal_style_text(stdout, STYLE_PLAIN);
    int width = terminal_columns(stdout, 100);
    if (width > 100)
        width = 100;
    printf("%srealm %s%s: %s\n\n%sUsage%s\n  realm %s", bold, command->name, plain,
           command->summary, bold, plain, command->name);
    for (const option *o = command->options; o->name; o++)
        if (o->required)
            printf(" --%s %s", o->name, o->value);
    printf(" [options]");
    const options_positional *p = command->positionals;
    for (; p && p->name; p++)
        printf(p->required ? " %s%s" : " [%s%s]", p->name, p->rest ? "..." : "");
    printf("\n\n");
    p = command->positionals;
    for (; p && p->name; p++) {
        char left[80];
        snprintf(left, sizeof left, "  %s", p->name);
        print_row(left, p->help, width);
    }
    printf("%s%sOptions%s\n", command->positionals ? "\n" : "", bold, plain);
    for (const option *o = command->options; o->name; o++)
        print_option(o, width);
    print_row("  -h, --help", "print this", width);
    if (command->notes)
        printf("\n%s%s", command->notes,
               command->notes[strlen(command->notes) - 1] == '\n' ? "" : "\n");
    return EXIT_OK;
}
