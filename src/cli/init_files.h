/* cli/init_files.h: the files of a new program's project, and a server's settings, embedded. Constant. */
#ifndef REALM_CLI_INIT_FILES_H
#define REALM_CLI_INIT_FILES_H

#include <stddef.h>

/* language, embedded symbol, path in the project, executable */
#define INIT_FILE_MAP(X)                                                                           \
    X("c", init_c_program, "program.c", 0)                                                         \
    X("c", init_c_build, "build.sh", 1)                                                            \
    X("c", init_c_readme, "README.md", 0)                                                          \
    X("c", init_guest_header, "realm_guest.h", 0)                                                  \
    X("c", init_json_header, "realm_json.h", 0)                                                    \
    X("rust", init_rust_lib, "src/lib.rs", 0)                                                      \
    X("rust", init_rust_cargo, "Cargo.toml", 0)                                                    \
    X("rust", init_rust_build, "build.sh", 1)                                                      \
    X("rust", init_rust_readme, "README.md", 0)                                                    \
    X("rust", init_crate_cargo, "realm-guest/Cargo.toml", 0)                                       \
    X("rust", init_crate_lib, "realm-guest/src/lib.rs", 0)                                         \
    X("rust", init_crate_raw, "realm-guest/src/raw.rs", 0)                                         \
    X("rust", init_crate_json, "realm-guest/src/json.rs", 0)                                       \
    X("server", init_server_yaml, "realm.yaml", 0)

typedef struct init_file {
    const char *language, *path;
    int executable;
    const unsigned char *bytes;
    const size_t *size;
} init_file;

#endif
