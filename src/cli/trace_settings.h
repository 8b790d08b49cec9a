/* cli/trace_settings.h: where spans go and which: the rows of `realm serve` that say so, and the variables that
 * OpenTelemetry's specification has for it (OTEL_...), which stand between REALM_... and the settings file.
 *
 * A variable with a wrong value is an error with its name, as with all settings; with OTEL_SDK_DISABLED=true nothing is
 * exported, whatever else is said. Main thread. */
#ifndef REALM_CLI_TRACE_SETTINGS_H
#define REALM_CLI_TRACE_SETTINGS_H

#include "cli/options.h"
#include "server/tracer.h"

/* What the rows traces-endpoint, traces-header, traces-sampler and traces-sample set. */
typedef struct trace_settings {
    const char *endpoint; /* NULL: none */
    option_list headers;
    const char *sampler;
    double sample;
} trace_settings;

/* Sets the rows that variables are for. source: as options_set; texts are in memory. */
realm_status trace_settings_environment(const options_command *command, int source, arena *memory,
                                        realm_error *error);

/* The tracer's options, which point into s, memory and the environment. *is_on 0: no spans are to be exported. */
realm_status trace_settings_read(const trace_settings *s, arena *memory, tracer_options *out,
                                 int *is_on, realm_error *error);

#endif
