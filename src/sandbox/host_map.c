/* sandbox/host_map.c: shows a 64-bit guest the weights where they lie in the model's file.
 *
 * The pages of the file that hold a layer's tensors are mapped over pages of the guest's linear
 * memory, private and copy-on-write. Sixteen guests that map the whole model share one copy, the
 * page cache's. A guest that writes there gets a page of its own and changes nothing for others.
 *
 * Wasmtime does not know of it. So the pages go back to anonymous ones before the store does
 * (invariant 7): memory that Wasmtime resets or unmaps is then the memory it handed out. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/json.h"
#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"

typedef struct span {
    const gguf_tensor *tensor;
    uint64_t file_start, size; /* whole pages */
} span;

static uint64_t page_size(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static int is_of_layer(const gguf_tensor *t, const char *prefix)
{
    size_t n = strlen(prefix);
    return t->name.size > n && memcmp(t->name.data, prefix, n) == 0;
}

static span span_of(const gguf_tensor *t)
{
    uint64_t page = page_size();
    uint64_t start = t->file_offset & ~(page - 1);
    uint64_t end = (t->file_offset + t->size + page - 1) & ~(page - 1);
    return (span){t, start, end - start};
}

static int remember(sandbox_request *r, void *address, size_t size)
{
    mapped_range *range = malloc(sizeof *range);
    if (!range)
        return 0;
    *range = (mapped_range){.next = r->mapped, .address = address, .size = size};
    r->mapped = range;
    return 1;
}

/* Remembered first: a range that is remembered and was not mapped is harmless, the other way round
 * is not. */
static realm_status map_span(sandbox_request *r, const gguf *g, const span *s, uint8_t *at,
                             realm_error *error)
{
    if (!remember(r, at, s->size))
        return realm_fail_memory(error, sizeof(mapped_range), "a mapping");
    void *p = mmap(at, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                   gguf_shard_descriptor(g, s->tensor->shard), (off_t)s->file_start);
    return p == at
               ? REALM_OK
               : realm_fail(error, REALM_IO, "the model's file cannot be mapped into the guest");
}

static json_t *describe(const span *s, uint64_t address)
{
    json_t *dims = json_array();
    for (uint32_t i = 0; i < s->tensor->n_dims; i++)
        json_array_append_new(dims, json_integer((json_int_t)s->tensor->dims[i]));
    return json_pack("{s:s%, s:I, s:s, s:i, s:o, s:I}", "name", s->tensor->name.data,
                     s->tensor->name.size, "address",
                     (json_int_t)(address + s->tensor->file_offset - s->file_start), "type",
                     dtype_name((dtype)s->tensor->type), "type_id", (int)s->tensor->type, "dims",
                     dims, "bytes", (json_int_t)s->tensor->size);
}

/* Lays the layer's tensors out from address on; maps them if mapping is 1. *bytes is what they take. */
static realm_status lay_out(sandbox_request *r, const gguf *g, const char *prefix, uint64_t address,
                            int mapping, json_t *list, uint64_t *bytes, realm_error *error)
{
    *bytes = 0;
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (!is_of_layer(t, prefix))
            continue;
        span s = span_of(t);
        if (mapping) {
            realm_status status = map_span(r, g, &s, r->memory_base + address + *bytes, error);
            if (status != REALM_OK)
                return status;
        }
        if (list)
            json_array_append_new(list, describe(&s, address + *bytes));
        *bytes += s.size;
    }
    return REALM_OK;
}

static int64_t give_directory(guest_call *c, json_t *list, uint64_t bytes)
{
    json_t *directory = json_pack("{s:I, s:O}", "bytes", (json_int_t)bytes, "tensors", list);
    char *text = json_text(directory, 0);
    json_decref(directory);
    if (!text)
        return REALM_NO_MEMORY;
    int64_t result = guest_give(c, 4, 5, text, strlen(text));
    free(text);
    return result;
}

int64_t host_map_load_layer(guest_call *c)
{
    sandbox_request *r = c->request;
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    if (!m || !guest_bytes(c, 2, 3) || !guest_bytes(c, 4, 5))
        return GUEST_TRAPPED;
    const model *own = engine_model(m->engine);
    const gguf *g = model_gguf(own);
    int32_t layer = c->arguments[1].i32;
    uint64_t address = c->arguments[2].u64, room = c->arguments[3].u64;
    if (layer < 0 || layer >= model_hyperparameters(own)->n_layers)
        return REALM_NOT_FOUND;
    if (address & (page_size() - 1))
        return guest_trap(c, REALM_TRAPPED,
                          "argument 'address': %" PRIu64 " is not a multiple of %" PRIu64, address,
                          page_size());
    if (gguf_shard_descriptor(g, 0) < 0)
        return REALM_UNSUPPORTED; /* the model is not in a file */
    char prefix[32];
    snprintf(prefix, sizeof prefix, "blk.%" PRId32 ".", layer);
    uint64_t bytes;
    realm_error error;
    lay_out(r, g, prefix, address, 0, NULL, &bytes, &error);
    if (room > 0 && bytes > room)
        return REALM_TOO_LARGE;
    json_t *list = json_array();
    realm_status status = lay_out(r, g, prefix, address, room > 0, list, &bytes, &error);
    int64_t result = status == REALM_OK ? give_directory(c, list, bytes)
                                        : guest_trap_error(c, &error);
    json_decref(list);
    return result;
}

void host_map_release_all(sandbox_request *r)
{
    while (r->mapped) {
        mapped_range *range = r->mapped;
        r->mapped = range->next;
        mmap(range->address, range->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        free(range);
    }
}
