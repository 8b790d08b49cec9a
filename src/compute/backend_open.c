/* compute/backend_open.c: see backend_open.h. */
#include "compute/backend_open.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

#define PLUGIN_FILE "librealm_cuda.so"

typedef enum device_word { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA, DEVICE_UNKNOWN } device_word;

static device_word parse(const char *device, int32_t *index)
{
    *index = 0;
    if (device == NULL || strcmp(device, "auto") == 0)
        return DEVICE_AUTO;
    if (strcmp(device, "cpu") == 0)
        return DEVICE_CPU;
    if (strncmp(device, "cuda", 4) != 0 || (device[4] != '\0' && device[4] != ':'))
        return DEVICE_UNKNOWN;
    if (device[4] == '\0')
        return DEVICE_CUDA;
    char *end;
    long n = strtol(device + 5, &end, 10);
    if (device[5] < '0' || device[5] > '9' || *end != '\0' || n > 1023)
        return DEVICE_UNKNOWN;
    *index = (int32_t)n;
    return DEVICE_CUDA;
}

int backend_device_parse(const char *device, realm_error *error)
{
    int32_t index;
    if (parse(device, &index) != DEVICE_UNKNOWN)
        return 1;
    realm_fail(error, REALM_INVALID, "device '%s' is none of auto, cpu, cuda and cuda:N", device);
    return 0;
}

int backend_is_auto(const char *device)
{
    int32_t index;
    return parse(device, &index) == DEVICE_AUTO;
}

/* Tries one place; remembers why the loader refused a file that is there. */
static void *load_from(const char *path, char *reason, size_t size)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL && (strchr(path, '/') == NULL || access(path, R_OK) == 0))
        snprintf(reason, size, "%s", dlerror());
    return library;
}

/* The plug-in is never unloaded: its device library keeps threads. */
static void *load_plugin(char *reason, size_t size)
{
    static const char *const places[] = {"", "../lib/", "../lib/x86_64-linux-gnu/",
                                         "../lib/aarch64-linux-gnu/"};
    enum { N_PLACES = sizeof places / sizeof places[0] };
    const char *chosen = getenv("REALM_CUDA_PLUGIN");
    if (chosen != NULL && *chosen != '\0') {
        snprintf(reason, size, "%s is not there", chosen);
        return load_from(chosen, reason, size);
    }
    char program[PATH_MAX] = "", path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    Dl_info here = {0}; /* librealm, where that is what holds this code */
    dladdr(&parse, &here);
    const char *files[] = {n > 0 ? program : "", here.dli_fname ? here.dli_fname : ""};
    void *library = NULL;
    for (size_t i = 0; i < 2 * N_PLACES && library == NULL; i++) {
        const char *file = files[i / N_PLACES], *slash = strrchr(file, '/');
        if (slash == NULL)
            continue;
        snprintf(path, sizeof path, "%.*s/%s" PLUGIN_FILE, (int)(slash - file), file,
                 places[i % N_PLACES]);
        library = load_from(path, reason, size);
    }
    return library != NULL ? library : load_from(PLUGIN_FILE, reason, size);
}

static realm_status open_cuda(backend **out, int32_t index, realm_error *error)
{
    char reason[256] = "";
    void *library = load_plugin(reason, sizeof reason);
    if (library == NULL)
        return realm_fail(error, REALM_UNSUPPORTED, "the CUDA plug-in cannot be loaded: %s",
                          reason);
    /* ISO C has no conversion from an object pointer to a function's; POSIX has this one. */
    union {
        void *object;
        backend_plugin_function function;
    } symbol = {dlsym(library, BACKEND_PLUGIN_SYMBOL)};
    const backend_plugin *plugin = symbol.object == NULL ? NULL : symbol.function();
    if (plugin == NULL || plugin->version != BACKEND_PLUGIN_VERSION ||
        plugin->table_bytes != sizeof(backend_table))
        return realm_fail(error, REALM_UNSUPPORTED, "the CUDA plug-in was built for another Realm");
    return plugin->open(out, index, error);
}

static void log_choice(const backend *b, const char *why)
{
    char text[256];
    b->table->describe(b, text, sizeof text);
    LOG_I("compute", "device %s%s", text, why);
}

realm_status backend_open(backend **out, const backend_options *options, realm_error *error)
{
    const backend_options usual = {0}, *o = options == NULL ? &usual : options;
    const backend_cpu_options cpu = {.n_threads = o->n_threads};
    realm_error why = {0};
    int32_t index;
    device_word word = parse(o->device, &index);
    if (!backend_device_parse(o->device, error))
        return REALM_INVALID;
    if (word != DEVICE_CPU) {
        realm_status status = open_cuda(out, index, &why);
        if (status == REALM_OK)
            log_choice(*out, word == DEVICE_AUTO ? " (there is one that works)" : " (as asked)");
        if (status == REALM_OK)
            return REALM_OK;
        if (word == DEVICE_CUDA)
            return realm_fail(error, status, "no CUDA device: %s", why.message);
    }
    realm_status status = backend_cpu_open(out, &cpu, error);
    if (status != REALM_OK)
        return status;
    char text[sizeof why.message + 32] = " (as asked)";
    if (word == DEVICE_AUTO)
        snprintf(text, sizeof text, " (no CUDA device: %s)", why.message);
    log_choice(*out, text);
    return REALM_OK;
}
