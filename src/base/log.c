/* base/log.c: see log.h. */
#include "base/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int g_level = LOG_WARN;
static atomic_int g_json;

static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};

void log_set_level(log_level level)
{
    atomic_store(&g_level, (int)level);
}

void log_set_json(int on)
{
    atomic_store(&g_json, on);
}

int log_level_parse(const char *name, log_level *level)
{
    for (int i = 0; i <= LOG_OFF; i++)
        if (strcmp(name, level_names[i]) == 0) {
            *level = (log_level)i;
            return 1;
        }
    return 0;
}

/* Appends text as the inside of a JSON string; message is already free of control characters. */
static size_t add_json_text(char *line, size_t used, size_t size, const char *text)
{
    for (; *text && used + 3 < size; text++) {
        if (*text == '"' || *text == '\\')
            line[used++] = '\\';
        line[used++] = *text;
    }
    return used;
}

static size_t add_json_field(char *line, size_t used, size_t size, const char *name,
                             const char *text)
{
    used += (size_t)snprintf(line + used, size - used, ",\"%s\":\"", name);
    used = add_json_text(line, used, size - 4, text);
    line[used++] = '"';
    return used;
}

static int is_silent(log_level level)
{
    return (int)level < atomic_load_explicit(&g_level, memory_order_relaxed);
}

static void write_line(log_level level, const char *room, const log_subject *subject,
                       const char *format, va_list arguments)
{
    const char *request = subject->request, *tenant = subject->tenant, *trace = subject->trace;
    realm_error said;
    realm_fail_v(&said, REALM_OK, format, arguments);
    realm_error asked; /* the request's id, cleaned too: it may be the client's own words */
    realm_fail(&asked, REALM_OK, "%.100s", request ? request : "");

    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char stamp[32];
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);

    char line[2048];
    size_t used;
    if (atomic_load_explicit(&g_json, memory_order_relaxed)) {
        used = (size_t)snprintf(line, sizeof line,
                                "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"room\":\"%s\"", stamp,
                                now.tv_nsec / 1000000, level_names[level], room);
        if (request)
            used = add_json_field(line, used, sizeof line, "request", asked.message);
        if (tenant && *tenant)
            used = add_json_field(line, used, sizeof line, "tenant", tenant);
        if (trace && *trace)
            used = add_json_field(line, used, sizeof line, "trace", trace);
        used = add_json_field(line, used, sizeof line, "message", said.message);
        line[used++] = '}';
    } else {
        used = (size_t)snprintf(line, sizeof line - 1, "%s.%03ldZ %-5s %s: %s%s%s%s", stamp,
                                now.tv_nsec / 1000000, level_names[level], room, said.message,
                                request ? " [" : "", asked.message, request ? "]" : "");
        if (used > sizeof line - 2)
            used = sizeof line - 2;
    }
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nowhere is left to report it */
}

void log_write(log_level level, const char *room, const char *request, const char *format, ...)
{
    if (is_silent(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    write_line(level, room, &(log_subject){.request = request}, format, arguments);
    va_end(arguments);
}

void log_write_for(log_level level, const char *room, const log_subject *subject,
                   const char *format, ...)
{
    if (is_silent(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    write_line(level, room, subject, format, arguments);
    va_end(arguments);
}
