/* simple-realm-test: librealm from a C program, in the fewest calls.
 *
 *     cc main.c $(pkg-config --cflags --libs realm) -o simple-realm-test
 *     ./simple-realm-test MODEL.gguf
 *
 * Loads a model, opens a tenant, sends one request to the built-in program "completion" and prints
 * the text as it comes. Exits with 1 and a sentence if anything fails. */
#include <realm/realm.h>
#include <stdio.h>
#include <string.h>

static void print_text(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]);
        return 2;
    }
    realm_error error = {0};
    realm_runtime *runtime = NULL;
    realm_program *program = NULL;
    realm_tenant *tenant = NULL;
    realm_call *call = NULL;
    const char *input = "{\"prompt\":\"The capital of France is\",\"max_tokens\":16}";
    realm_tenant_options options = {.name = "simple"};
    int code = 1;

    if (realm_runtime_open(&runtime, NULL, &error) ||
        realm_runtime_load(runtime, NULL, argv[1], NULL, NULL, &error) ||
        realm_program_builtin(&program, runtime, "completion", &error) ||
        realm_tenant_open(&tenant, runtime, &options, &error)) {
        fprintf(stderr, "simple-realm-test: %s\n", error.message);
        goto out;
    }
    realm_call_options request = {.tenant = tenant,
                                  .program = program,
                                  .input = input,
                                  .input_size = strlen(input),
                                  .on_text = print_text};
    if (realm_call_start(&call, runtime, &request, &error)) {
        fprintf(stderr, "simple-realm-test: %s\n", error.message);
        goto out;
    }
    const realm_call_result *result = realm_call_wait(call);
    printf("\n");
    if (result->status) {
        fprintf(stderr, "simple-realm-test: %s\n", result->message);
        goto out;
    }
    printf(
        "%llu tokens read, %llu written; the sandbox started in %.0f us and worked for %.2f ms\n",
        (unsigned long long)result->prompt_tokens, (unsigned long long)result->generated_tokens,
        (double)result->start_ns / 1e3, (double)result->cpu_ns / 1e6);
    code = 0;
out:
    realm_call_close(call);
    realm_tenant_close(tenant);
    realm_program_close(program);
    realm_runtime_close(runtime);
    return code;
}
