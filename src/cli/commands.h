/* cli/commands.h: the commands of the realm program.
 *
 * Each is one file, cmd_NAME.c, and one row in the list below: main.c dispatches and prints its
 * help from it. A command's argv[0] is its own name, so that it parses its arguments as if it were
 * a program. Commands run on the main thread, print results to standard output and everything else
 * to standard error, and return their exit code; only main.c ends the process.
 *
 * Exit codes: 0 it worked; 1 it failed, and one sentence on standard error says why and what to do
 * next; 2 it was called wrongly, and the sentence names the argument. */
#ifndef REALM_CLI_COMMANDS_H
#define REALM_CLI_COMMANDS_H

#include "base/fail.h"

#define EXIT_OK     0
#define EXIT_FAILED 1
#define EXIT_USAGE  2

/* name, what `realm --help` says of it */
#define COMMAND_MAP(X)                                                                             \
    X(run, "generate text with a model, through a program in its sandbox")                         \
    X(serve, "serve models over HTTP, with OpenAI's API")                                          \
    X(inspect, "show what a GGUF file holds and the memory it will need")                          \
    X(tokenize, "turn text into token ids")                                                        \
    X(template, "render chat messages with a model's template")                                    \
    X(init, "make the project of a new program, or a server's settings")                           \
    X(bench, "measure the speed of prompts and generation")                                        \
    X(tenant, "customers: limits, shares and grants")                                              \
    X(key, "API keys of tenants and of the node")                                                  \
    X(deploy, "give a tenant's program its next version")                                          \
    X(programs, "list deployed programs, versions and who serves")                                 \
    X(rollback, "let an older version of a program serve again")                                   \
    X(usage, "export what tenants used, for cost allocation")                                      \
    X(top, "show what a server does now")

#define COMMAND_DECLARE(name, summary) int cmd_##name(int argc, char **argv);
COMMAND_MAP(COMMAND_DECLARE)
#undef COMMAND_DECLARE

/* Prints "realm NAME: SENTENCE" to standard error and returns EXIT_FAILED. */
int command_failed(const char *name, const realm_error *error);

#endif
