/* cli/cmd_usage.c: `realm usage`: what was used, for cost allocation, as CSV or JSON. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"

int cmd_usage(int argc, char **argv)
{
    place p = {.store = NULL};
    manage_usage_query q = {.format = "csv", .by = "day,tenant,key,model,program"};
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &q.tenant,
         .value = "NAME",
         .help = "only this one's"},
        {.name = "from",
         .kind = OPTION_TEXT,
         .out = &q.from,
         .value = "DAY",
         .help = "the first day (UTC), as 2026-01-01; else from the beginning"},
        {.name = "to",
         .kind = OPTION_TEXT,
         .out = &q.to,
         .value = "DAY",
         .help = "the last day, included; else to the end"},
        {.name = "key",
         .kind = OPTION_TEXT,
         .out = &q.key,
         .value = "ID",
         .help = "only of this key"},
        {.name = "model",
         .kind = OPTION_TEXT,
         .out = &q.model,
         .value = "NAME",
         .help = "only of this model"},
        {.name = "program",
         .kind = OPTION_TEXT,
         .out = &q.program,
         .value = "NAME",
         .help = "only of this program"},
        {.name = "by",
         .kind = OPTION_TEXT,
         .out = &q.by,
         .value = "LIST",
         .help = "a row for each of these; the rest is summed"},
        {.name = "format",
         .kind = OPTION_TEXT,
         .out = &q.format,
         .value = "csv|json",
         .help = "how it is printed"},
        PLACE_OPTIONS(p),
        {0}};
    const options_command command = {
        .name = "usage",
        .summary = "export what tenants used: requests, tokens, sandbox time, latencies",
        .options = options,
        .notes = "  realm usage --tenant acme --from 2026-01-01 --to 2026-01-31 --by model\n",
    };
    realm_error error;
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    if (manage_usage_check(&q, &error))
        return options_wrong(&command, "%s", error.message);
    realm_status status = place_open(&p, 0, &error);
    if (!status)
        status = p.server ? place_usage(&p, &q, stdout, &error)
                          : manage_usage(p.store, &q, NULL, stdout, &error);
    place_close(&p);
    return status ? command_failed("usage", &error) : EXIT_OK;
}
