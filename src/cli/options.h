/* cli/options.h: the arguments of a command, read by a table that is also its help.
 *
 *     const char *model = NULL;
 *     int64_t n_tokens = 64;
 *     int json = 0;
 *     const option options[] = {
 *         {.name = "model", .kind = OPTION_TEXT, .out = &model, .value = "FILE", .required = 1,
 *          .help = "the GGUF file"},
 *         {.name = "max-tokens", .kind = OPTION_INT, .out = &n_tokens, .value = "N", .min = 1,
 *          .max = 1e6, .help = "stop after N tokens"},
 *         {.name = "json", .kind = OPTION_FLAG, .out = &json, .help = "print one JSON object"},
 *         {0}};
 *     const options_command command = {.name = "run", .summary = "...", .options = options};
 *     int code = options_parse(&command, argc, argv);
 *     if (code != OPTIONS_GO_ON)
 *         return code;
 *
 * Understood: --name VALUE, --name=VALUE, --flag, -x (a row's letter), -x VALUE, "-" as a
 * positional argument, "--" before positional arguments that begin with a dash, and -h and --help
 * everywhere. A value that begins with two dashes must be written --name=VALUE, so that a forgotten
 * value is noticed. An option given twice takes the last. Main thread; nothing is allocated: texts
 * point into argv. */
#ifndef REALM_CLI_OPTIONS_H
#define REALM_CLI_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef enum option_kind {
    OPTION_FLAG, /* int: becomes 1 */
    OPTION_TEXT, /* const char *, into argv */
    OPTION_INT,  /* int64_t; also 4k, 2m, 1g (1024s) */
    OPTION_REAL, /* double; finite */
    OPTION_LIST, /* option_list, of texts: may be given several times */
} option_kind;

#define OPTION_MAX_LIST 64

typedef struct option_list {
    const char *items[OPTION_MAX_LIST];
    int count;
    int source; /* who gave them: items of another source replace these; see options_set */
} option_list;

typedef struct option {
    const char *name; /* without dashes; NULL ends the table */
    char letter;      /* 0 for none */
    option_kind kind;
    void *out; /* what kind says. Its value before parsing is the default; help shows it if it is
                  inside min and max (a text: if not NULL): start at one outside to hide it */
    const char *value; /* how help calls the value ("FILE"); NULL for a flag */
    double min, max;   /* both included; both 0 means no limits */
    int required;
    const char *help; /* one sentence, wrapped by the printer; no full stop */
} option;

typedef struct options_positional {
    const char *name; /* "FILE"; NULL ends the table */
    const char **out; /* into argv; left alone if it is not given */
    char ***rest; /* instead of out, in the last row only: takes all that are left. They stand in a
                     row in argv, which options_parse reorders for it */
    int *rest_count; /* with rest: how many */
    int required;    /* with rest: at least one */
    const char *help;
} options_positional;

typedef struct options_command {
    const char *name;    /* "inspect"; help calls it "realm inspect" */
    const char *summary; /* one sentence */
    const option *options;
    const options_positional *positionals; /* NULL for none */
    const char *notes; /* printed as it is at the end of the help (examples); NULL for none */
} options_command;

#define OPTIONS_GO_ON (-1)

/* Reads argv[1..argc). Returns OPTIONS_GO_ON, or the exit code to return at once: 0 after --help,
 * 2 after a wrong argument, which has been told on standard error. */
int options_parse(const options_command *command, int argc, char **argv);

/* Sets the row of that name for another source than the command line: shown is how a message calls it there
 * ("REALM_PORT", "port in realm.yaml"), source its number, above 0. text must stay. A flag wants "true" or
 * "false". Call it before options_parse, whose values replace these.
 *   REALM_NOT_FOUND  there is no such row
 *   REALM_INVALID    the value is not what the row wants */
realm_status options_set(const options_command *command, const char *name, const char *text,
                         const char *shown, int source, realm_error *error);

/* "realm NAME: SENTENCE (see realm NAME --help)" on standard error, for what a table cannot say
 * ("--chat and --prompt exclude each other"); returns 2. */
int options_wrong(const options_command *command, const char *format, ...) REALM_PRINTF(2, 3);

/* Reads "1,8,32" into out; REALM_INVALID if it is no such list, if a number is outside min..max or
 * if there are more than out_count. *count gets how many. */
realm_status options_int_list(const char *text, int64_t min, int64_t max, int64_t *out,
                              size_t out_count, size_t *count, realm_error *error);

/* The name in names[0..count) nearest to word (a few wrong, missing, extra or swapped letters), or
 * NULL if none is near enough to be meant. */
const char *options_nearest(const char *word, const char *const *names, size_t count);

#endif
