/* tests/unit/cli/options_test.c: cli/options.h: what is understood, what is refused and how it is
 * said. */
#include "unit/unit.h"

#include <unistd.h>

#include "cli/commands.h"
#include "cli/options.h"

typedef struct parsed {
    const char *model, *file;
    int64_t count;
    double heat;
    int json, code, rest_count;
    char **rest;
    char said[4096]; /* on both streams */
} parsed;

/* Runs fn with standard output and error in a file, whose text goes to said. */
static void capture(parsed *p, void (*fn)(parsed *, int, char **), int argc, char **argv)
{
    FILE *file = tmpfile();
    int out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    fflush(stdout);
    dup2(fileno(file), STDOUT_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    fn(p, argc, argv);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    close(out);
    close(err);
    rewind(file);
    p->said[fread(p->said, 1, sizeof p->said - 1, file)] = 0;
    fclose(file);
}

static void parse(parsed *p, int argc, char **argv)
{
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &p->model,
         .value = "FILE",
         .required = 1,
         .help = "the model"},
        {.name = "max-tokens",
         .letter = 'n',
         .kind = OPTION_INT,
         .out = &p->count,
         .value = "N",
         .min = 1,
         .max = 100000,
         .help = "stop after N tokens"},
        {.name = "temperature",
         .kind = OPTION_REAL,
         .out = &p->heat,
         .value = "T",
         .min = 0,
         .max = 10,
         .help = "how much is left to chance"},
        {.name = "json", .kind = OPTION_FLAG, .out = &p->json, .help = "print JSON"},
        {0}};
    const options_positional positionals[] = {
        {.name = "FILE", .out = &p->file, .help = "the first"},
        {.name = "TEXT", .rest = &p->rest, .rest_count = &p->rest_count, .help = "all others"},
        {0}};
    const options_command command = {.name = "test",
                                     .summary = "a command",
                                     .options = options,
                                     .positionals = positionals,
                                     .notes = "The end."};
    p->code = options_parse(&command, argc, argv);
}

#define PARSE(p, ...)                                                                              \
    do {                                                                                           \
        static char *words_[] = {"test", __VA_ARGS__, NULL};                                       \
        (p) = (parsed){.count = 64, .heat = -1};                                                   \
        capture(&(p), parse, (int)(sizeof words_ / sizeof *words_) - 1, words_);                   \
    } while (0)

static void all_ways_to_write_an_option_are_understood(void **state)
{
    (void)state;
    parsed p;
    PARSE(p, "--model", "a.gguf", "--max-tokens=5", "--temperature", "0.5", "--json");
    assert_int_equal(p.code, OPTIONS_GO_ON);
    assert_string_equal(p.said, "");
    assert_string_equal(p.model, "a.gguf");
    assert_int_equal(p.count, 5);
    assert_true(p.heat == 0.5);
    assert_int_equal(p.json, 1);
    assert_null(p.file);
    assert_int_equal(p.rest_count, 0);
    PARSE(p, "-m", "x", "-n", "4k", "--model=--y", "--model", "z=1");
    assert_int_equal(p.code, OPTIONS_GO_ON);
    assert_int_equal(p.count, 4096);
    assert_string_equal(p.model, "z=1"); /* the last one counts */
    PARSE(p, "--model=");
    assert_int_equal(p.code, OPTIONS_GO_ON);
    assert_string_equal(p.model, "");
    assert_int_equal(p.count, 64);
}

static void positional_arguments_stand_anywhere(void **state)
{
    (void)state;
    parsed p;
    PARSE(p, "one", "--model", "m", "-", "--json", "--", "--three", "-4");
    assert_int_equal(p.code, OPTIONS_GO_ON);
    assert_string_equal(p.file, "one");
    assert_int_equal(p.rest_count, 3);
    assert_string_equal(p.rest[0], "-");
    assert_string_equal(p.rest[1], "--three");
    assert_string_equal(p.rest[2], "-4");
    assert_int_equal(p.json, 1);
}

static void wrong_arguments_are_refused_in_one_sentence(void **state)
{
    (void)state;
    parsed p;
#define REFUSED(sentence, ...)                                                                     \
    do {                                                                                           \
        PARSE(p, __VA_ARGS__);                                                                     \
        assert_int_equal(p.code, EXIT_USAGE);                                                      \
        assert_string_equal(p.said, "realm test: " sentence " (see realm test --help)\n");         \
    } while (0)
    REFUSED("--model FILE is missing", "--json");
    REFUSED("there is no option --modle; did you mean --model?", "--modle", "x");
    REFUSED("there is no option --max; did you mean --max-tokens?", "--max=4");
    REFUSED("there is no option --hlep; did you mean --help?", "--hlep");
    REFUSED("there is no option --zzzzzz", "--zzzzzz");
    REFUSED("there is no option -x", "-x");
    REFUSED("there is no option -mn", "-mn");
    REFUSED("--model needs a value (FILE)", "--model");
    REFUSED("--model needs a value (FILE); if it is '--json', write --model=--json", "--model",
            "--json");
    REFUSED("--json takes no value", "--json=1", "--model=x");
    REFUSED("--max-tokens wants a whole number from 1 to 100000, not '0'", "-n", "0");
    REFUSED("--max-tokens wants a whole number from 1 to 100000, not '5x'", "-n", "5x");
    REFUSED("--max-tokens wants a whole number from 1 to 100000, not ''", "--max-tokens=");
    REFUSED("--max-tokens wants a whole number from 1 to 100000, not '99999999999999999999'", "-n",
            "99999999999999999999");
    REFUSED("--max-tokens wants a whole number from 1 to 100000, not '9007199254740993m'", "-n",
            "9007199254740993m");
    REFUSED("--temperature wants a number from 0 to 10, not 'nan'", "--temperature", "nan");
    REFUSED("--temperature wants a number from 0 to 10, not '-1'", "--temperature", "-1");
}

static void one_argument_too_many_is_refused(void **state)
{
    (void)state;
    const char *file = NULL;
    const option options[] = {{0}};
    const options_positional positionals[] = {
        {.name = "FILE", .out = &file, .required = 1, .help = "it"}, {0}};
    const options_command command = {
        .name = "test", .summary = "x", .options = options, .positionals = positionals};
    char *two[] = {"test", "a", "b", NULL}, *none[] = {"test", NULL};
    assert_int_equal(options_parse(&command, 3, two), EXIT_USAGE);
    assert_int_equal(options_parse(&command, 1, none), EXIT_USAGE);
    assert_int_equal(options_parse(&command, 2, two), OPTIONS_GO_ON);
}

static void help_is_made_of_the_table(void **state)
{
    (void)state;
    parsed p;
    PARSE(p, "--json", "--help", "--nonsense");
    assert_int_equal(p.code, EXIT_OK);
    assert_holds(p.said, "realm test: a command\n");
    assert_holds(p.said, "  realm test --model FILE [options] [FILE] [TEXT...]\n");
    assert_holds(p.said, "  -m, --model FILE          the model (required)\n");
    assert_holds(p.said, "  -n, --max-tokens N        stop after N tokens (default 64)\n");
    assert_holds(p.said,
                 "      --temperature T       how much is left to chance\n"); /* -1 is no default */
    assert_holds(p.said, "      --json                print JSON\n");
    assert_holds(p.said, "\nThe end.\n");
    assert_null(strchr(p.said, '\033')); /* no terminal, no colours */
}

static void lists_of_numbers_are_read(void **state)
{
    (void)state;
    int64_t numbers[3];
    size_t count;
    realm_error error;
    assert_status(options_int_list("1,8,2k", 1, 4096, numbers, 3, &count, &error), REALM_OK, error);
    assert_int_equal(count, 3);
    assert_true(numbers[0] == 1 && numbers[1] == 8 && numbers[2] == 2048);
    assert_status(options_int_list("3m,2G", 1, INT64_MAX, numbers, 3, &count, &error), REALM_OK,
                  error);
    assert_true(count == 2 && numbers[0] == 3 << 20 && numbers[1] == (int64_t)2 << 30);
    static const char *const wrong[] = {"",
                                        ",",
                                        "1,",
                                        "1,,2",
                                        "0",
                                        "1,2,3,4",
                                        "a",
                                        "1t",
                                        "1, 2 ",
                                        "5000",
                                        "1111111111111111111111111111111111111111"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(options_int_list(wrong[i], 1, 4096, numbers, 3, &count, &error),
                         REALM_INVALID);
}

static void the_nearest_name_is_near(void **state)
{
    (void)state;
    static const char *const names[] = {"run", "inspect", "tokenize", "template", "init", "bench"};
    assert_string_equal(options_nearest("inspct", names, 6), "inspect");
    assert_string_equal(options_nearest("tokenise", names, 6), "tokenize");
    assert_string_equal(options_nearest("rnu", names, 6), "run");
    assert_string_equal(options_nearest("temp", names, 6), "template");
    assert_string_equal(options_nearest("intit", names, 6), "init");
    assert_null(options_nearest("serve", names, 6));
    assert_null(options_nearest("", names, 6));
    assert_null(
        options_nearest("a-very-long-word-that-is-longer-than-any-name-there-is", names, 6));
}

/* ---- settings from a file and the environment ---- */

enum { FILE_SOURCE = 1, ENVIRONMENT_SOURCE = 2 };

typedef struct settings {
    const char *host;
    int64_t port;
    double heat;
    int quiet;
    option_list models;
} settings;

static void fill(settings *s, option out[6])
{
    const option rows[] = {
        {.name = "host", .kind = OPTION_TEXT, .out = &s->host, .value = "ADDRESS"},
        {.name = "port", .kind = OPTION_INT, .out = &s->port, .value = "N", .min = 0, .max = 65535},
        {.name = "heat", .kind = OPTION_REAL, .out = &s->heat, .value = "X", .min = 0, .max = 2},
        {.name = "quiet", .kind = OPTION_FLAG, .out = &s->quiet},
        {.name = "model", .kind = OPTION_LIST, .out = &s->models, .value = "FILE"},
        {0}};
    memcpy(out, rows, sizeof rows);
}

static void settings_are_set_by_name(void **state)
{
    (void)state;
    settings s = {.port = 8080};
    option rows[6];
    fill(&s, rows);
    const options_command command = {.name = "serve", .options = rows};
    realm_error error;
    static const char *const given[][2] = {{"host", "::1"},   {"port", "9k"}, {"heat", "0.5"},
                                           {"quiet", "true"}, {"model", "a"}, {"model", "b"}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        assert_status(options_set(&command, given[i][0], given[i][1], "it", FILE_SOURCE, &error),
                      REALM_OK, error);
    assert_string_equal(s.host, "::1");
    assert_int_equal(s.port, 9 * 1024);
    assert_true(s.heat == 0.5 && s.quiet == 1);
    assert_int_equal(s.models.count, 2);
    assert_string_equal(s.models.items[1], "b");
    assert_status(options_set(&command, "quiet", "false", "it", FILE_SOURCE, &error), REALM_OK,
                  error);
    assert_int_equal(s.quiet, 0);
}

static void wrong_settings_are_told_as_their_source_calls_them(void **state)
{
    (void)state;
    settings s = {.port = 8080};
    option rows[6];
    fill(&s, rows);
    const options_command command = {.name = "serve", .options = rows};
    realm_error error;
    static const char *const wrong[][2] = {{"port", "many"}, {"port", "65536"}, {"port", "-1"},
                                           {"port", ""},     {"heat", "3"},     {"heat", "nan"},
                                           {"quiet", "yes"}, {"quiet", "1"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_status(
            options_set(&command, wrong[i][0], wrong[i][1], "REALM_SHOWN", FILE_SOURCE, &error),
            REALM_INVALID, error);
        assert_holds(error.message, "REALM_SHOWN");
    }
    assert_int_equal(s.port, 8080);
    assert_status(options_set(&command, "prot", "1", "x", FILE_SOURCE, &error), REALM_NOT_FOUND,
                  error);
    assert_holds(error.message, "'prot'");
    for (int i = 0; i < OPTION_MAX_LIST; i++)
        assert_status(options_set(&command, "model", "m", "x", FILE_SOURCE, &error), REALM_OK,
                      error);
    assert_status(options_set(&command, "model", "m", "x", FILE_SOURCE, &error), REALM_INVALID,
                  error);
}

/* A list of a later source takes the place of an earlier one's; the command line's is the last. */
static void later_sources_replace_lists(void **state)
{
    (void)state;
    settings s = {.port = 8080};
    option rows[6];
    fill(&s, rows);
    const options_command command = {.name = "serve", .options = rows};
    realm_error error;
    assert_status(options_set(&command, "model", "file-1", "x", FILE_SOURCE, &error), REALM_OK,
                  error);
    assert_status(options_set(&command, "model", "file-2", "x", FILE_SOURCE, &error), REALM_OK,
                  error);
    assert_status(options_set(&command, "model", "env", "x", ENVIRONMENT_SOURCE, &error), REALM_OK,
                  error);
    assert_int_equal(s.models.count, 1);
    assert_string_equal(s.models.items[0], "env");
    char *line[] = {"serve", "--model", "a", "--port=1", "--model", "b"};
    assert_int_equal(options_parse(&command, 6, line), OPTIONS_GO_ON);
    assert_int_equal(s.models.count, 2);
    assert_string_equal(s.models.items[0], "a");
    assert_string_equal(s.models.items[1], "b");
    assert_int_equal(s.port, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_ways_to_write_an_option_are_understood),
        cmocka_unit_test(positional_arguments_stand_anywhere),
        cmocka_unit_test(wrong_arguments_are_refused_in_one_sentence),
        cmocka_unit_test(one_argument_too_many_is_refused),
        cmocka_unit_test(help_is_made_of_the_table),
        cmocka_unit_test(lists_of_numbers_are_read),
        cmocka_unit_test(the_nearest_name_is_near),
        cmocka_unit_test(settings_are_set_by_name),
        cmocka_unit_test(wrong_settings_are_told_as_their_source_calls_them),
        cmocka_unit_test(later_sources_replace_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
