/* cli/trace_settings.c: see trace_settings.h. */
#include "cli/trace_settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"

/* An empty variable is none, by the specification. */
static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* OTEL_EXPORTER_OTLP_TRACES_<name>, or what is for all signals. *which: the one that is there. */
static const char *exporter_variable(const char *name, char which[64])
{
    snprintf(which, 64, "OTEL_EXPORTER_OTLP_TRACES_%s", name);
    const char *value = variable(which);
    if (value)
        return value;
    snprintf(which, 64, "OTEL_EXPORTER_OTLP_%s", name);
    return variable(which);
}

static int is_disabled(void)
{
    const char *disabled = variable("OTEL_SDK_DISABLED"),
               *exporter = variable("OTEL_TRACES_EXPORTER");
    return (disabled && strcasecmp(disabled, "true") == 0) ||
           (exporter && strcmp(exporter, "none") == 0);
}

/* ---- variables that have a row ---- */

/* The one for traces is taken as it is; to the one for all signals the signal's path is added. */
static realm_status set_endpoint(const options_command *command, int source, arena *memory,
                                 realm_error *error)
{
    static const char own[] = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                      all[] = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const char *value = variable(own), *text = NULL;
    if (value) {
        const char *host = strstr(value, "://");
        text = arena_printf(memory, "%s%s", value, host && !strchr(host + 3, '/') ? "/" : "");
    } else if ((value = variable(all))) {
        int has_slash = value[strlen(value) - 1] == '/';
        text = arena_printf(memory, "%s%sv1/traces", value, has_slash ? "" : "/");
    }
    if (!value)
        return REALM_OK;
    if (!text)
        return realm_fail_memory(error, strlen(value), "a setting");
    return options_set(command, "traces-endpoint", text, variable(own) ? own : all, source, error);
}

static realm_status set_headers(const options_command *command, int source, arena *memory,
                                realm_error *error)
{
    char which[64];
    const char *value = exporter_variable("HEADERS", which);
    char *copy = value ? arena_copy(memory, value, strlen(value)) : NULL;
    realm_status status = REALM_OK;
    if (value && !copy)
        return realm_fail_memory(error, strlen(value), "a setting");
    for (char *rest, *item = copy ? strtok_r(copy, ",", &rest) : NULL; item && !status;
         item = strtok_r(NULL, ",", &rest))
        status = options_set(command, "traces-header", item, which, source, error);
    return status;
}

realm_status trace_settings_environment(const options_command *command, int source, arena *memory,
                                        realm_error *error)
{
    static const char sampler[] = "OTEL_TRACES_SAMPLER", part[] = "OTEL_TRACES_SAMPLER_ARG";
    if (is_disabled())
        return REALM_OK;
    realm_status status = set_endpoint(command, source, memory, error);
    if (!status)
        status = set_headers(command, source, memory, error);
    if (!status && variable(sampler))
        status = options_set(command, "traces-sampler", variable(sampler), sampler, source, error);
    if (!status && variable(sampler) && variable(part))
        status = options_set(command, "traces-sample", variable(part), part, source, error);
    return status;
}

/* ---- the others ---- */

static realm_status read_count(const char *name, const char *value, int32_t *out,
                               realm_error *error)
{
    char *end;
    if (!value)
        return REALM_OK;
    long number = strtol(value, &end, 10);
    if (*end || number < 1 || number > INT32_MAX)
        return realm_fail(error, REALM_INVALID, "%s must be a number from 1 on, not '%.40s'", name,
                          value);
    *out = (int32_t)number;
    return REALM_OK;
}

static realm_status read_batching(tracer_options *out, realm_error *error)
{
    const struct {
        const char *name;
        int32_t *out;
    } counts[] = {{"OTEL_BSP_SCHEDULE_DELAY", &out->delay_ms},
                  {"OTEL_BSP_EXPORT_TIMEOUT", &out->retry_ms},
                  {"OTEL_BSP_MAX_QUEUE_SIZE", &out->queue_spans},
                  {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &out->batch_spans}};
    realm_status status = REALM_OK;
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !status; i++)
        status = read_count(counts[i].name, variable(counts[i].name), counts[i].out, error);
    return status;
}

static realm_status read_exporter(tracer_options *out, realm_error *error)
{
    char which[64];
    const char *value = exporter_variable("PROTOCOL", which);
    if (value && strcmp(value, "http/protobuf") != 0)
        return realm_fail(error, REALM_INVALID,
                          "%s is '%.40s', and http/protobuf is what is spoken", which, value);
    value = variable("OTEL_TRACES_EXPORTER");
    if (value && strcmp(value, "otlp") != 0)
        return realm_fail(error, REALM_INVALID,
                          "OTEL_TRACES_EXPORTER must be otlp or none, not '%.40s'", value);
    value = exporter_variable("COMPRESSION", which);
    if (value && strcmp(value, "gzip") != 0 && strcmp(value, "none") != 0)
        return realm_fail(error, REALM_INVALID, "%s must be gzip or none, not '%.40s'", which,
                          value);
    out->gzip = value && strcmp(value, "gzip") == 0;
    out->ca_file = exporter_variable("CERTIFICATE", which);
    value = exporter_variable("TIMEOUT", which);
    return read_count(which, value, &out->timeout_ms, error);
}

/* OTEL_SERVICE_NAME goes before the same among OTEL_RESOURCE_ATTRIBUTES. */
static realm_status read_resource(arena *memory, tracer_options *out, realm_error *error)
{
    otlp_pair *list, *whole;
    size_t count;
    const char *text = variable("OTEL_RESOURCE_ATTRIBUTES"), *name = variable("OTEL_SERVICE_NAME");
    realm_status status = otlp_read_pairs(text ? text : "", memory, &list, &count, error);
    if (status)
        return realm_fail_in(error, status, "OTEL_RESOURCE_ATTRIBUTES");
    whole = arena_take_array(memory, count + 1, sizeof *whole);
    if (!whole)
        return realm_fail_memory(error, count, "a setting");
    out->resource = whole;
    out->n_resource = 0;
    if (name)
        whole[out->n_resource++] = (otlp_pair){"service.name", name};
    for (size_t i = 0; i < count; i++)
        if (!name || strcmp(list[i].name, "service.name") != 0)
            whole[out->n_resource++] = list[i];
    return REALM_OK;
}

static realm_status read_headers(const trace_settings *s, arena *memory, tracer_options *out,
                                 realm_error *error)
{
    otlp_pair *list = arena_take_array(memory, OPTION_MAX_LIST, sizeof *list);
    if (!list)
        return realm_fail_memory(error, 1, "a setting");
    out->headers = list;
    for (int i = 0; i < s->headers.count; i++) {
        otlp_pair *one;
        size_t count;
        realm_status status = otlp_read_pairs(s->headers.items[i], memory, &one, &count, error);
        if (!status && count != 1)
            status = realm_fail(error, REALM_INVALID, "it is not one NAME=VALUE");
        if (status) /* not shown: it may be a secret */
            return realm_fail_in(error, status, "traces-header, number %d", i + 1);
        list[out->n_headers++] = *one;
    }
    return REALM_OK;
}

realm_status trace_settings_read(const trace_settings *s, arena *memory, tracer_options *out,
                                 int *is_on, realm_error *error)
{
    *out = (tracer_options){.endpoint = s->endpoint, .ratio = s->sample};
    *is_on = s->endpoint && *s->endpoint && !is_disabled();
    if (s->endpoint && *s->endpoint && !*is_on)
        LOG_I("server", "no spans are exported: the environment says so (OTEL_SDK_DISABLED or "
                        "OTEL_TRACES_EXPORTER)");
    if (!*is_on)
        return REALM_OK;
    if (!tracer_sampler(s->sampler, out))
        return realm_fail(error, REALM_INVALID,
                          "traces-sampler: '%.40s' is none of always_on, always_off, traceidratio "
                          "and these with parentbased_ before",
                          s->sampler);
    realm_status status = read_headers(s, memory, out, error);
    if (!status)
        status = read_exporter(out, error);
    if (!status)
        status = read_batching(out, error);
    return status ? status : read_resource(memory, out, error);
}
