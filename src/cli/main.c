/* cli/main.c: the realm program: finds the command that argv[1] names and returns its exit code.
 *
 * The only place where the process ends. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/terminal.h"

#ifndef REALM_VERSION
#define REALM_VERSION "0.0.0"
#endif

static const struct {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
#define COMMAND_ROW(name, summary) {#name, summary, cmd_##name},
    COMMAND_MAP(COMMAND_ROW)
#undef COMMAND_ROW
};

#define COMMAND_COUNT (sizeof commands / sizeof *commands)

int command_failed(const char *name, const realm_error *error)
{
    const char *red = terminal_style_text(stderr, STYLE_RED);
    const char *plain = terminal_style_text(stderr, STYLE_PLAIN);
    fprintf(stderr, "%srealm %s:%s %s\n", red, name, plain, error->message);
    return EXIT_FAILED;
}

static void print_help(void)
{
    const char *bold = terminal_style_text(stdout, STYLE_BOLD);
    const char *plain = terminal_style_text(stdout, STYLE_PLAIN);
    printf("%srealm%s: language models for many tenants, each in a sandbox of its own\n\n"
           "%sUsage%s\n  realm COMMAND [arguments]\n\n%sCommands%s\n",
           bold, plain, bold, plain, bold, plain);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        printf("  %s%-10s%s %s\n", bold, commands[i].name, plain, commands[i].summary);
    printf(
        "\n  realm COMMAND --help explains a command; realm --version prints the version.\n"
        "\nEnvironment\n"
        "  REALM_LOG=debug|info|warn|error|off   what is logged to standard error (default warn)\n"
        "  REALM_CACHE=FOLDER                    where compiled programs and the like are kept\n"
        "  REALM_DATA=FOLDER                     where tenants, keys, programs and usage are kept\n"
        "  REALM_CPU=reference|avx2|avx-vnni|avx512|amx|neon|neon-dot|neon-i8mm\n"
        "                                        do not use newer instructions than these\n"
        "  NO_COLOR=1                            no colours\n");
}

static int unknown_command(const char *word)
{
    const char *names[COMMAND_COUNT];
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        names[i] = commands[i].name;
    realm_error error;
    const char *nearest = options_nearest(word, names, COMMAND_COUNT);
    if (nearest)
        realm_fail(&error, REALM_INVALID, "there is no command '%.80s'; did you mean '%s'?", word,
                   nearest);
    else
        realm_fail(&error, REALM_INVALID, "there is no command '%.80s'", word);
    fprintf(stderr, "realm: %s (see realm --help)\n", error.message);
    return EXIT_USAGE;
}

static int set_log_level(void)
{
    const char *wish = getenv("REALM_LOG");
    log_level level = LOG_WARN;
    if (wish && *wish && !log_level_parse(wish, &level)) {
        realm_error error;
        realm_fail(&error, REALM_INVALID,
                   "REALM_LOG must be debug, info, warn, error or off, not '%.80s'", wish);
        fprintf(stderr, "realm: %s\n", error.message);
        return EXIT_USAGE;
    }
    log_set_level(level);
    return EXIT_OK;
}

/* Output that could not be written (a full disk) must not look like success. */
static int finish_output(int code)
{
    errno = 0;
    if ((fflush(stdout) == 0 && !ferror(stdout)) || code != EXIT_OK)
        return code;
    fprintf(stderr, "realm: cannot write to standard output: %s\n",
            errno ? strerror(errno) : "an earlier write failed");
    return EXIT_FAILED;
}

/* A stream that the caller closed would lend its number to the next file we open, and what we print
 * would go there. /dev/null takes its place, opened the wrong way round so that using it still fails. */
static void fill_closed_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

int main(int argc, char **argv)
{
    fill_closed_streams();
    /* A reader that goes away early, like head(1), ends us quietly, as it ends every filter, even
     * if whoever started us ignores the signal. What opens sockets ignores it for itself. */
    signal(SIGPIPE, SIG_DFL);
    /* A limit of file sizes is a write's error, which says what could not be written. */
    signal(SIGXFSZ, SIG_IGN);
    if (set_log_level() != EXIT_OK)
        return EXIT_USAGE;
    if (argc < 2) {
        print_help();
        return EXIT_USAGE;
    }
    const char *word = argv[1];
    if (strcmp(word, "help") == 0 && argc > 2) { /* "help run" is "run --help" */
        static char flag[] = "--help";
        argv[1] = argv[2];
        argv[2] = flag;
        argc = 3;
        word = argv[1];
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help();
        return finish_output(EXIT_OK);
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0 || strcmp(word, "version") == 0) {
        printf("realm %s\n", REALM_VERSION);
        return finish_output(EXIT_OK);
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(word, commands[i].name) == 0)
            return finish_output(commands[i].run(argc - 1, argv + 1));
    return unknown_command(word);
}
