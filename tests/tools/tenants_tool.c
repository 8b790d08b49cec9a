/* tests/tools/tenants_tool.c: what many tenants on one model cost, and what a hostile one does to the
 * others; through librealm alone. Prints one JSON object; exits with 1 if anything fails.
 *
 *     tenants_tool memory MODEL N              N tenants, each in the middle of a generation: what the
 *                                              kernel says this process holds
 *     tenants_tool neighbour MODEL GUEST...    a victim generates alone, then beside each GUEST started
 *                                              over and over by another tenant: its tokens and pace, and
 *                                              how the guest's requests ended */
#include <pthread.h>
#include <realm/realm.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TENANTS   64
#define VICTIM_TOKENS 48

static realm_error g_error;

static int fail(const char *doing)
{
    fprintf(stderr, "tenants_tool: %s: %s\n", doing, g_error.message);
    return 1;
}

static long status_kib(const char *key)
{
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtol(line + strlen(key), NULL, 10);
    if (file)
        fclose(file);
    return kib;
}

static realm_call *start(realm_runtime *r, realm_tenant *t, realm_program *p, const char *input,
                         void (*on_text)(void *, const char *, size_t), void *context)
{
    realm_call_options options = {.tenant = t,
                                  .program = p,
                                  .input = input,
                                  .input_size = strlen(input),
                                  .seed = 1,
                                  .on_text = on_text,
                                  .context = context};
    realm_call *c = NULL;
    return realm_call_start(&c, r, &options, &g_error) ? NULL : c;
}

static void count_text(void *context, const char *text, size_t size)
{
    (void)text;
    atomic_fetch_add((atomic_long *)context, (long)size);
}

/* ---- memory --------------------------------------------------------------------------------------- */

static int memory(realm_runtime *r, int n)
{
    realm_program *p;
    realm_tenant *tenants[MAX_TENANTS];
    realm_call *calls[MAX_TENANTS];
    atomic_long seen[MAX_TENANTS];
    long before = status_kib("VmRSS:");
    if (n < 1 || n > MAX_TENANTS || realm_program_builtin(&p, r, "completion", &g_error))
        return fail("completion");
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "tenant-%d", i);
        realm_tenant_options options = {.name = name};
        if (realm_tenant_open(&tenants[i], r, &options, &g_error))
            return fail(name);
        atomic_init(&seen[i], 0);
        calls[i] = start(
            r, tenants[i], p,
            "{\"prompt\":\"Once upon a time\",\"max_tokens\":1000,\"ignore_eos\":true}", count_text,
            &seen[i]);
        if (!calls[i])
            return fail(name);
    }
    /* All of them are under way once each has streamed something. */
    for (int waited = 0, under_way = 0; under_way < n && waited < 60000; waited += 10) {
        under_way = 0;
        for (int i = 0; i < n; i++)
            under_way += atomic_load(&seen[i]) > 40;
        usleep(10000);
    }
    long during = status_kib("VmRSS:");
    printf(
        "{\"tenants\":%d,\"loaded_kib\":%ld,\"running_kib\":%ld,\"file_kib\":%ld,\"anonymous_kib\":%ld}\n",
        n, before, during, status_kib("RssFile:"), status_kib("RssAnon:"));
    for (int i = 0; i < n; i++) {
        realm_call_close(calls[i]);
        realm_tenant_close(tenants[i]);
    }
    realm_program_close(p);
    return 0;
}

/* ---- neighbour ------------------------------------------------------------------------------------ */

typedef struct attack {
    realm_runtime *runtime;
    realm_tenant *tenant;
    realm_program *program;
    atomic_int stop;
    atomic_int requests;
    realm_status status; /* of the last that ended by itself */
    char message[REALM_ERROR_MESSAGE_SIZE];
} attack;

static void *attack_thread(void *context)
{
    attack *a = context;
    while (!atomic_load(&a->stop)) {
        realm_call *c = start(a->runtime, a->tenant, a->program, "{}", NULL, NULL);
        if (!c)
            break;
        const realm_call_result *result;
        while (!(result = realm_call_poll(c, 20)))
            if (atomic_load(&a->stop))
                realm_call_cancel(c);
        if (!atomic_load(&a->stop) || atomic_load(&a->requests) == 0) {
            a->status = result->status;
            snprintf(a->message, sizeof a->message, "%s", result->message);
        }
        realm_call_close(c);
        atomic_fetch_add(&a->requests, 1);
    }
    return NULL;
}

/* The "tokens" of the victim's answer, to be freed; and how long it took. */
static char *victim(realm_runtime *r, realm_tenant *t, realm_program *p, double *seconds)
{
    char input[256];
    snprintf(
        input, sizeof input,
        "{\"prompt\":\"The quick brown fox\",\"max_tokens\":%d,\"ignore_eos\":true,\"logprobs\":2}",
        VICTIM_TOKENS);
    realm_call *c = start(r, t, p, input, NULL, NULL);
    if (!c)
        return NULL;
    const realm_call_result *result = realm_call_wait(c);
    char *tokens = NULL;
    *seconds = (double)result->wall_ns / 1e9;
    if (result->status) {
        realm_error failed = {.status = result->status};
        snprintf(failed.message, sizeof failed.message, "%s", result->message);
        g_error = failed;
    } else {
        const char *from = strstr(result->json, "\"tokens\":");
        const char *to = from ? strstr(from, "\"timings\"") : NULL;
        if (to)
            tokens = strndup(from, (size_t)(to - from));
    }
    realm_call_close(c);
    return tokens;
}

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *bytes = malloc(1 << 20);
    *size = file && bytes ? fread(bytes, 1, 1 << 20, file) : 0;
    if (file)
        fclose(file);
    return bytes;
}

static int neighbour(realm_runtime *r, char **paths, int n_paths)
{
    realm_program *completion;
    realm_tenant *good, *bad;
    realm_tenant_options good_options = {.name = "victim"},
                         bad_options = {.name = "attacker", .cpu_ms = 300};
    if (realm_program_builtin(&completion, r, "completion", &g_error) ||
        realm_tenant_open(&good, r, &good_options, &g_error) ||
        realm_tenant_open(&bad, r, &bad_options, &g_error))
        return fail("setting up");
    double alone_seconds = 1e9, seconds;
    char *alone = NULL;
    for (int i = 0; i < 3; i++) { /* the best of three, after the caches are warm */
        free(alone);
        alone = victim(r, good, completion, &seconds);
        if (!alone)
            return fail("the victim alone");
        alone_seconds = seconds < alone_seconds ? seconds : alone_seconds;
    }
    printf("{\"alone_seconds\":%.4f,\"attacks\":[", alone_seconds);
    for (int i = 0; i < n_paths; i++) {
        size_t size;
        char *bytes = read_file(paths[i], &size);
        attack a = {.runtime = r, .tenant = bad};
        if (!bytes || realm_program_open(&a.program, r, paths[i], bytes, size, &g_error))
            return fail(paths[i]);
        free(bytes);
        pthread_t thread;
        pthread_create(&thread, NULL, attack_thread, &a);
        usleep(20000);
        double best = 1e9;
        int same = 1;
        for (int j = 0; j < 5; j++) {
            char *beside = victim(r, good, completion, &seconds);
            same = same && beside && strcmp(alone, beside) == 0;
            best = seconds < best ? seconds : best;
            free(beside);
        }
        /* A spinning guest has the lowest priority: beside the victim it may not have come to its end. */
        for (int waited = 0; atomic_load(&a.requests) == 0 && waited < 60000; waited += 10)
            usleep(10000);
        atomic_store(&a.stop, 1);
        pthread_join(thread, NULL);
        printf("%s\n{\"guest\":\"%s\",\"same_tokens\":%s,\"seconds\":%.4f,\"requests\":%d,"
               "\"status\":\"%s\",\"message\":\"%s\"}",
               i ? "," : "", strrchr(paths[i], '/') ? strrchr(paths[i], '/') + 1 : paths[i],
               same ? "true" : "false", best, atomic_load(&a.requests), realm_status_name(a.status),
               a.message);
        realm_program_close(a.program);
    }
    printf("]}\n");
    free(alone);
    realm_tenant_close(good);
    realm_tenant_close(bad);
    realm_program_close(completion);
    return 0;
}

int main(int argc, char **argv)
{
    realm_runtime *r;
    if (argc < 4) {
        fprintf(stderr, "usage: tenants_tool memory MODEL N | neighbour MODEL GUEST...\n");
        return 2;
    }
    if (realm_runtime_open(&r, NULL, &g_error) ||
        realm_runtime_load(r, NULL, argv[2], NULL, NULL, &g_error))
        return fail(argv[2]);
    int code = strcmp(argv[1], "memory") == 0 ? memory(r, atoi(argv[3]))
                                              : neighbour(r, argv + 3, argc - 3);
    if (!code)
        realm_runtime_close(r);
    return code;
}
