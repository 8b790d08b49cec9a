/* cli/inspect_print.c: `realm inspect` for people: aligned, long values cut, the summary last,
 * where a terminal ends up. */
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/inspect.h"
#include "cli/terminal.h"
#include "formats/json.h"

#define WIDEST_NAME   52 /* longer names push their row to the right */
#define TEXT_BYTES    70 /* of a string that are shown */
#define ELEMENT_BYTES 16 /* of a string in an array */
#define ELEMENTS      5  /* of an array that are shown */

static void print_heading(const char *text, uint64_t count)
{
    printf("\n%s%s%s (%" PRIu64 ")\n", terminal_style_text(stdout, STYLE_BOLD), text,
           terminal_style_text(stdout, STYLE_PLAIN), count);
}

/* A name of the file in its column, from two spaces on. */
static void print_name(gguf_string name, int width)
{
    printf("  %s", terminal_style_text(stdout, STYLE_CYAN));
    terminal_print_clean(stdout, name.data, name.size);
    fputs(terminal_style_text(stdout, STYLE_PLAIN), stdout);
    int pad = width - (int)(name.size < WIDEST_NAME ? name.size : WIDEST_NAME);
    printf("%*s", pad > 0 ? pad : 0, "");
}

static int wider(int width, size_t size)
{
    int other = size < WIDEST_NAME ? (int)size : WIDEST_NAME;
    return other > width ? other : width;
}

/* "98.9 MiB" */
static const char *bytes_text(uint64_t bytes, char *text, size_t size)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double number = (double)bytes;
    size_t unit = 0;
    for (; number >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++)
        number /= 1024;
    snprintf(text, size, unit ? "%.1f %s" : "%.0f %s", number, units[unit]);
    return text;
}

/* "134.5 M" */
static const char *count_text(uint64_t count, char *text, size_t size)
{
    static const char *const units[] = {"", " K", " M", " B", " T"};
    double number = (double)count;
    size_t unit = 0;
    for (; number >= 1000 && unit + 1 < sizeof units / sizeof *units; unit++)
        number /= 1000;
    snprintf(text, size, unit ? "%.1f%s" : "%.0f%s", number, units[unit]);
    return text;
}

/* At most limit bytes of it, cut between characters. */
static void print_cut(gguf_string text, size_t limit)
{
    if (text.size <= limit) {
        json_print_text(stdout, text.data, text.size);
        return;
    }
    json_print_text(stdout, text.data, utf8_complete_prefix((const uint8_t *)text.data, limit));
    printf("... (%zu bytes)", text.size);
}

static void print_element(const gguf *g, const gguf_value *array, uint64_t i)
{
    switch (array->array.type) {
    case GGUF_STRING: print_cut(gguf_array_string(g, array, i), ELEMENT_BYTES); break;
    case GGUF_F32:
    case GGUF_F64: printf("%g", gguf_array_float(array, i)); break;
    case GGUF_BOOL: fputs(gguf_array_int(array, i) ? "true" : "false", stdout); break;
    case GGUF_U64: printf("%" PRIu64, (uint64_t)gguf_array_int(array, i)); break;
    default: printf("%" PRId64, gguf_array_int(array, i));
    }
}

static void print_value(const gguf *g, const gguf_value *value)
{
    switch (value->type) {
    case GGUF_STRING: print_cut(value->string, TEXT_BYTES); break;
    case GGUF_ARRAY:
        for (uint64_t i = 0; i < value->array.count && i < ELEMENTS; i++) {
            fputs(i ? ", " : "", stdout);
            print_element(g, value, i);
        }
        if (value->array.count > ELEMENTS)
            fputs(", ...", stdout);
        break;
    case GGUF_F32:
    case GGUF_F64: printf("%g", value->f); break;
    case GGUF_BOOL: fputs(value->u ? "true" : "false", stdout); break;
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64: printf("%" PRId64, value->i); break;
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64: printf("%" PRIu64, value->u); break;
    }
}

static void print_pair(const gguf *g, const gguf_pair *pair, int width)
{
    char type[48];
    if (pair->value.type == GGUF_ARRAY)
        snprintf(type, sizeof type, "%s[%" PRIu64 "]", gguf_type_name(pair->value.array.type),
                 pair->value.array.count);
    else
        snprintf(type, sizeof type, "%s", gguf_type_name(pair->value.type));
    print_name(pair->key, width);
    printf("  %s%-14s%s  ", terminal_style_text(stdout, STYLE_DIM), type,
           terminal_style_text(stdout, STYLE_PLAIN));
    print_value(g, &pair->value);
    putchar('\n');
}

static void print_metadata(const gguf *g)
{
    int width = 0;
    size_t count = gguf_pair_count(g);
    for (size_t i = 0; i < count; i++)
        width = wider(width, gguf_pair_at(g, i)->key.size);
    print_heading("Metadata", count);
    for (size_t i = 0; i < count; i++)
        print_pair(g, gguf_pair_at(g, i), width);
}

static void print_tensor(const gguf_tensor *t, int width)
{
    char shape[96], size[32];
    size_t used = 0;
    for (uint32_t d = 0; d < t->n_dims; d++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, d ? " x %" PRIu64 : "%" PRIu64,
                                 t->dims[d]);
    print_name(t->name, width);
    printf("  %-7s  %-20s  %12s\n", dtype_name(t->type), shape,
           bytes_text(t->size, size, sizeof size));
}

static void print_tensors(const gguf *g)
{
    int width = 0;
    size_t count = gguf_tensor_count(g);
    for (size_t i = 0; i < count; i++)
        width = wider(width, gguf_tensor_at(g, i)->name.size);
    print_heading("Tensors", count);
    for (size_t i = 0; i < count; i++)
        print_tensor(gguf_tensor_at(g, i), width);
}

static void print_types(const inspect_report *report)
{
    uint64_t kinds = 0;
    for (uint32_t i = 0; i < INSPECT_TYPES; i++)
        kinds += report->types[i].tensors != 0;
    print_heading("Types", kinds);
    for (uint32_t i = 0; i < INSPECT_TYPES; i++) {
        const inspect_type *type = &report->types[i];
        char parameters[32], bytes[32];
        if (type->tensors)
            printf("  %-7s  %8" PRIu64 " tensors  %10s parameters  %12s\n", dtype_name(i),
                   type->tensors, count_text(type->parameters, parameters, sizeof parameters),
                   bytes_text(type->bytes, bytes, sizeof bytes));
    }
}

static void print_file(const inspect_report *report)
{
    const gguf *g = report->g;
    char bytes[32], parameters[32];
    printf("\n%sFile%s\n  %-22s", terminal_style_text(stdout, STYLE_BOLD),
           terminal_style_text(stdout, STYLE_PLAIN), "path");
    terminal_print_clean(stdout, report->path, strlen(report->path));
    printf("\n  %-22sGGUF version %" PRIu32 ", %" PRIu32 " file%s, %s\n", "format", gguf_version(g),
           gguf_shard_count(g), gguf_shard_count(g) == 1 ? "" : "s",
           bytes_text(gguf_file_bytes(g), bytes, sizeof bytes));
    printf("  %-22s", "architecture");
    if (report->architecture.size)
        terminal_print_clean(stdout, report->architecture.data, report->architecture.size);
    else
        fputs("not named", stdout);
    printf("\n  %-22s%s\n", "parameters",
           count_text(report->parameters, parameters, sizeof parameters));
}

static void print_memory(const inspect_report *report)
{
    char text[32], label[64];
    printf("\n%sMemory%s\n  %-22s%12s\n", terminal_style_text(stdout, STYLE_BOLD),
           terminal_style_text(stdout, STYLE_PLAIN), "weights",
           bytes_text(gguf_tensor_bytes(report->g), text, sizeof text));
    if (!report->kv_known) {
        printf("  %-22sunknown: %s\n", "keys and values", report->kv_why.message);
        return;
    }
    printf("  %-22s%12s   F16\n", "KV of one token",
           bytes_text(report->kv_bytes_per_token, text, sizeof text));
    snprintf(label, sizeof label, "KV of %" PRIu64 " tokens", report->context_tokens);
    printf("  %-22s%12s\n", label, bytes_text(report->kv_bytes, text, sizeof text));
    printf("  %-22s%s%12s%s\n", "together", terminal_style_text(stdout, STYLE_BOLD),
           bytes_text(report->total_bytes, text, sizeof text),
           terminal_style_text(stdout, STYLE_PLAIN));
}

void inspect_print(const inspect_report *report)
{
    print_metadata(report->g);
    print_tensors(report->g);
    print_types(report);
    print_file(report);
    print_memory(report);
}
