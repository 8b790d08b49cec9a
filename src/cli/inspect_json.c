/* cli/inspect_json.c: `realm inspect --json`: everything the file holds, as one object.
 *
 * Written straight to the stream, not through jansson: metadata hold u64 that pass jansson's
 * integers and strings that are not UTF-8, and a vocabulary of a quarter of a million strings needs
 * no second copy. Keys keep the file's order. Keys of this object are never renamed or removed. */
#include <stdio.h>
#include <string.h>

#include "cli/inspect.h"
#include "formats/json.h"

static void print_text(gguf_string text)
{
    json_print_text(stdout, text.data, text.size);
}

static void print_element(const gguf *g, const gguf_value *array, uint64_t i)
{
    switch (array->array.type) {
    case GGUF_STRING: print_text(gguf_array_string(g, array, i)); break;
    case GGUF_F32:
    case GGUF_F64: json_print_real(stdout, gguf_array_float(array, i)); break;
    case GGUF_BOOL: fputs(gguf_array_int(array, i) ? "true" : "false", stdout); break;
    case GGUF_U64: printf("%" PRIu64, (uint64_t)gguf_array_int(array, i)); break;
    default: printf("%" PRId64, gguf_array_int(array, i));
    }
}

static void print_array(const gguf *g, const gguf_value *array)
{
    putchar('[');
    for (uint64_t i = 0; i < array->array.count; i++) {
        if (i)
            fputs(", ", stdout);
        print_element(g, array, i);
    }
    putchar(']');
}

static void print_value(const gguf *g, const gguf_value *value)
{
    switch (value->type) {
    case GGUF_STRING: print_text(value->string); break;
    case GGUF_ARRAY: print_array(g, value); break;
    case GGUF_F32:
    case GGUF_F64: json_print_real(stdout, value->f); break;
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

static void print_metadata(const gguf *g)
{
    fputs("  \"metadata\": {", stdout);
    for (size_t i = 0; i < gguf_pair_count(g); i++) {
        const gguf_pair *pair = gguf_pair_at(g, i);
        fputs(i ? ",\n    " : "\n    ", stdout);
        print_text(pair->key);
        fputs(": ", stdout);
        print_value(g, &pair->value);
    }
    fputs("\n  },\n", stdout);
}

static void print_tensors(const gguf *g)
{
    fputs("  \"tensors\": [", stdout);
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        fputs(i ? ",\n    {\"name\": " : "\n    {\"name\": ", stdout);
        print_text(t->name);
        printf(", \"type\": \"%s\", \"shape\": [", dtype_name(t->type));
        for (uint32_t d = 0; d < t->n_dims; d++)
            printf(d ? ", %" PRIu64 : "%" PRIu64, t->dims[d]);
        printf("], \"bytes\": %zu, \"offset\": %" PRIu64 ", \"shard\": %" PRIu32 "}", t->size,
               t->file_offset, t->shard);
    }
    fputs("\n  ],\n", stdout);
}

static void print_types(const inspect_report *report)
{
    fputs("  \"types\": {", stdout);
    int printed = 0;
    for (uint32_t i = 0; i < INSPECT_TYPES; i++) {
        const inspect_type *type = &report->types[i];
        if (type->tensors)
            printf("%s\"%s\": {\"tensors\": %" PRIu64 ", \"parameters\": %" PRIu64
                   ", \"bytes\": %" PRIu64 "}",
                   printed++ ? ",\n    " : "\n    ", dtype_name(i), type->tensors, type->parameters,
                   type->bytes);
    }
    fputs("\n  },\n", stdout);
}

/* null: the file does not say enough to know. */
static void print_memory(const inspect_report *report)
{
    printf("  \"memory\": {\n    \"weights_bytes\": %" PRIu64 ",\n    \"context_tokens\": %" PRIu64
           ",\n",
           gguf_tensor_bytes(report->g), report->context_tokens);
    if (report->kv_known)
        printf("    \"kv_bytes_per_token\": %" PRIu64 ",\n    \"kv_bytes\": %" PRIu64
               ",\n    \"total_bytes\": %" PRIu64 "\n  }\n",
               report->kv_bytes_per_token, report->kv_bytes, report->total_bytes);
    else
        printf("    \"kv_bytes_per_token\": null,\n    \"kv_bytes\": null,\n"
               "    \"total_bytes\": null\n  }\n");
}

void inspect_json(const inspect_report *report)
{
    const gguf *g = report->g;
    fputs("{\n  \"file\": ", stdout);
    json_print_text(stdout, report->path, strlen(report->path));
    printf(",\n  \"version\": %" PRIu32 ",\n  \"alignment\": %" PRIu32 ",\n  \"shards\": %" PRIu32
           ",\n  \"file_bytes\": %" PRIu64 ",\n  \"architecture\": ",
           gguf_version(g), gguf_alignment(g), gguf_shard_count(g), gguf_file_bytes(g));
    if (report->architecture.size)
        print_text(report->architecture);
    else
        fputs("null", stdout);
    printf(",\n  \"parameters\": %" PRIu64 ",\n", report->parameters);
    print_metadata(g);
    print_tensors(g);
    print_types(report);
    print_memory(report);
    puts("}");
}
