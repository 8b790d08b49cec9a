/* cli/cmd_init.c: `realm init DIR`: writes the project of a new program, which builds and runs at once.
 *
 * The files are embedded (init_files.h), so that an installed realm needs no folder beside it. Nothing
 * that exists is written over. Main thread. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/init_files.h"
#include "cli/options.h"
#include "cli/terminal.h"

#define DECLARE(language, symbol, path, executable)                                                \
    extern const unsigned char symbol[];                                                           \
    extern const size_t symbol##_size;
INIT_FILE_MAP(DECLARE)
#undef DECLARE

static const init_file files[] = {
#define ROW(language, symbol, path, executable)                                                    \
    {language, path, executable, symbol, &symbol##_size},
    INIT_FILE_MAP(ROW)
#undef ROW
};

#define N_FILES (sizeof files / sizeof *files)

static realm_status join(char *out, size_t size, const char *folder, const char *path,
                         realm_error *error)
{
    int length = snprintf(out, size, "%s/%s", folder, path);
    if (length < 0 || (size_t)length >= size)
        return realm_fail(error, REALM_INVALID, "the path '%.100s...' is too long", folder);
    return REALM_OK;
}

/* All are looked for before one is written: a project is made whole or not at all. */
static realm_status check_free(const char *folder, const char *language, realm_error *error)
{
    char path[4096];
    for (size_t i = 0; i < N_FILES; i++) {
        if (strcmp(files[i].language, language) != 0)
            continue;
        realm_status status = join(path, sizeof path, folder, files[i].path, error);
        if (status)
            return status;
        if (access(path, F_OK) == 0)
            return realm_fail(error, REALM_INVALID, "'%s' exists already; choose a new folder",
                              path);
    }
    return REALM_OK;
}

static realm_status write_file(const char *folder, const init_file *file, realm_error *error)
{
    char path[4096], parent[4096];
    realm_status status = join(path, sizeof path, folder, file->path, error);
    if (status)
        return status;
    memcpy(parent, path, strlen(path) + 1);
    *strrchr(parent, '/') = 0;
    status = file_make_folders(parent, error);
    if (!status)
        status = file_write(path, file->bytes, *file->size, error);
    if (!status && chmod(path, file->executable ? 0755 : 0644) != 0)
        status = realm_fail(error, REALM_IO, "cannot set the mode of '%s'", path);
    return status;
}

int cmd_init(int argc, char **argv)
{
    const char *folder = NULL, *language = "c";
    int server = 0;
    const option options[] = {{.name = "lang",
                               .kind = OPTION_TEXT,
                               .out = &language,
                               .value = "c|rust",
                               .help = "the language of the program"},
                              {.name = "server",
                               .kind = OPTION_FLAG,
                               .out = &server,
                               .help = "instead: write realm.yaml, a server's settings with their "
                                       "meaning, into DIR (default: this folder)"},
                              {0}};
    const options_positional positionals[] = {
        {.name = "DIR", .out = &folder, .help = "the folder to make"}, {0}};
    const options_command command = {
        .name = "init",
        .summary = "make the project of a new program, in C or Rust, or a server's settings",
        .options = options,
        .positionals = positionals,
        .notes =
            "Then: cd DIR && ./build.sh && realm run --model FILE --program program.wasm --prompt TEXT\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    if (server) {
        language = "server";
        folder = folder ? folder : ".";
    } else if (!folder) {
        return options_wrong(&command, "DIR is missing");
    }
    if (!server && strcmp(language, "c") != 0 && strcmp(language, "rust") != 0)
        return options_wrong(&command, "--lang must be c or rust, not '%.40s'", language);
    realm_error error;
    if (check_free(folder, language, &error))
        return command_failed("init", &error);
    for (size_t i = 0; i < N_FILES; i++)
        if (strcmp(files[i].language, language) == 0 && write_file(folder, &files[i], &error))
            return command_failed("init", &error);
    if (server) {
        printf(
            "made %s/realm.yaml. Next: name a model in it, then\n\n  realm serve --config %s/realm.yaml\n",
            folder, folder);
        return EXIT_OK;
    }
    const char *quote = strpbrk(folder, " \t&;()<>|$*?[]") ? "'" : "";
    printf(
        "made %s. Next:\n\n  cd %s%s%s\n  ./build.sh\n  realm run --model MODEL.gguf --program program.wasm "
        "--prompt \"The capital of France is\"\n",
        folder, quote, folder, quote);
    return EXIT_OK;
}
