/* multi-tenant: three tenants, three programs, one copy of the weights, all at once.
 *
 *     multi-tenant MODEL.gguf POET.wasm CLERK.wasm CONCIERGE.wasm
 *
 * Each tenant has what it needs and nothing more: the poet may see logits, the concierge may keep
 * state, the clerk may do neither. Prints what each said, and from the kernel's own accounting that
 * the model's file is in memory once. */
#include <realm/realm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct guest {
    const char *name, *prompt, *capability;
    realm_program *program;
    realm_tenant *tenant;
    realm_call *call;
    char said[8192];
    size_t size;
} guest;

static void keep_text(void *context, const char *text, size_t size)
{
    guest *g = context;
    if (size > sizeof g->said - 1 - g->size)
        size = sizeof g->said - 1 - g->size;
    memcpy(g->said + g->size, text, size);
    g->size += size;
}

static int fail(const char *doing, const realm_error *error)
{
    fprintf(stderr, "multi-tenant: %s: %s\n", doing, error->message);
    return 1;
}

static int open_guest(guest *g, realm_runtime *runtime, const char *path)
{
    realm_error error = {0};
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "multi-tenant: cannot open %s\n", path);
        return 1;
    }
    static char bytes[4 << 20];
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    if (realm_program_open(&g->program, runtime, g->name, bytes, size, &error))
        return fail(path, &error);
    realm_tenant_options options = {
        .name = g->name, .capabilities = &g->capability, .n_capabilities = g->capability ? 1 : 0};
    if (realm_tenant_open(&g->tenant, runtime, &options, &error))
        return fail(g->name, &error);
    return 0;
}

static int start_guest(guest *g, realm_runtime *runtime)
{
    realm_error error = {0};
    char input[512];
    int size = snprintf(input, sizeof input, "{\"prompt\":\"%s\"}", g->prompt);
    realm_call_options options = {.tenant = g->tenant,
                                  .program = g->program,
                                  .input = input,
                                  .input_size = (size_t)size,
                                  .seed = 7,
                                  .on_text = keep_text,
                                  .context = g};
    return realm_call_start(&g->call, runtime, &options, &error) ? fail(g->name, &error) : 0;
}

/* Resident KiB of this process by kind, as /proc/self/status tells. */
static long resident_kib(const char *key)
{
    FILE *file = fopen("/proc/self/status", "r");
    if (!file)
        return -1;
    char line[256];
    long kib = -1;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtol(line + strlen(key), NULL, 10);
    fclose(file);
    return kib;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL.gguf POET.wasm CLERK.wasm CONCIERGE.wasm\n", argv[0]);
        return 2;
    }
    guest guests[3] = {
        {.name = "poet", .prompt = "A poem about the river Seine:\\n", .capability = "logits"},
        {.name = "clerk", .prompt = "A record of the capital of France, as JSON: "},
        {.name = "concierge", .prompt = "What is the capital of France?", .capability = "state"},
    };
    realm_error error = {0};
    realm_runtime *runtime = NULL;
    int code = 0;
    if (realm_runtime_open(&runtime, NULL, &error))
        return fail("starting", &error);
    if (realm_runtime_load(runtime, NULL, argv[1], NULL, NULL, &error))
        code = fail(argv[1], &error);
    for (int i = 0; i < 3 && !code; i++)
        code = open_guest(&guests[i], runtime, argv[2 + i]);
    for (int i = 0; i < 3 && !code; i++)
        code = start_guest(&guests[i], runtime);
    for (int i = 0; i < 3 && !code; i++) {
        const realm_call_result *result = realm_call_wait(guests[i].call);
        printf("%-9s  %s\n", guests[i].name, guests[i].said);
        if (result->status) {
            fprintf(stderr, "multi-tenant: %s: %s\n", guests[i].name, result->message);
            code = 1;
        }
    }
    struct stat file;
    if (!code && stat(argv[1], &file) == 0)
        printf("\nmodel file %.1f MB; resident: %.1f MB in all for three tenants\n",
               (double)file.st_size / 1e6, (double)resident_kib("VmRSS:") * 1024 / 1e6);
    for (int i = 0; i < 3; i++) {
        realm_call_close(guests[i].call);
        realm_tenant_close(guests[i].tenant);
        realm_program_close(guests[i].program);
    }
    realm_runtime_close(runtime);
    return code;
}
