/* sandbox/wasm_engines.c: how Wasmtime is set up, once for 32-bit and once for 64-bit memories.
 *
 * What is switched off is as important as what is on: no threads, no WASI, no second memory, no
 * relaxed SIMD (its results differ between machines, and a replayed request must not). */
#include "sandbox/runtime.h"

#include <string.h>
#include <sys/mman.h>

/* Wasm may use so much of a stack, host functions the rest (rendering a chat template needs half
 * a megabyte, reading deep JSON some more). Stacks are address space until they are touched. */
#define WASM_STACK_BYTES  ((size_t)512 << 10)
#define WHOLE_STACK_BYTES ((size_t)2 << 20)

static void pool(wasm_config_t *config, const sandbox_host_options *o)
{
    uint32_t n = (uint32_t)(o->max_requests + sandbox_host_child_instances(o));
    wasmtime_pooling_allocation_config_t *p = wasmtime_pooling_allocation_config_new();
    wasmtime_pooling_allocation_config_total_core_instances_set(p, n);
    wasmtime_pooling_allocation_config_total_memories_set(p, n);
    wasmtime_pooling_allocation_config_total_tables_set(p, n);
    wasmtime_pooling_allocation_config_total_stacks_set(p, n);
    wasmtime_pooling_allocation_config_max_memory_size_set(p, o->max_memory_bytes);
    wasmtime_pooling_allocation_config_max_unused_warm_slots_set(p, n);
    /* What an instance touched is given back at once: an idle host holds no guest's bytes. */
    wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(p, 0);
    wasmtime_pooling_allocation_config_table_keep_resident_set(p, 0);
    wasmtime_pooling_allocation_strategy_set(config, p);
    wasmtime_pooling_allocation_config_delete(p);
}

static wasm_config_t *settings(void)
{
    wasm_config_t *c = wasm_config_new();
    wasmtime_config_epoch_interruption_set(c, true);
    wasmtime_config_max_wasm_stack_set(c, WASM_STACK_BYTES);
    wasmtime_config_async_stack_size_set(c, WHOLE_STACK_BYTES);
    wasmtime_config_parallel_compilation_set(c, true);
    wasmtime_config_cranelift_opt_level_set(c, WASMTIME_OPT_LEVEL_SPEED);
    wasmtime_config_memory_init_cow_set(c, true);
    wasmtime_config_memory_may_move_set(c, false); /* invariant 6 */
    wasmtime_config_wasm_simd_set(c, true);
    wasmtime_config_wasm_relaxed_simd_set(c, false);
    wasmtime_config_wasm_bulk_memory_set(c, true);
    wasmtime_config_wasm_multi_value_set(c, true);
    wasmtime_config_wasm_multi_memory_set(c, false);
    wasmtime_config_wasm_memory64_set(c, true);
    wasmtime_config_wasm_custom_page_sizes_set(c, false);
    wasmtime_config_shared_memory_set(c, false);
    return c;
}

/* Wasmtime ends the process where the pool's address space cannot be had (a limit such as ulimit -v, a
 * system that does not overcommit), so it is asked for first. A slot takes 4 GiB and guards on both
 * sides. */
static realm_status check_address_space(const sandbox_host_options *o, realm_error *error)
{
    uint64_t slots = (uint64_t)(o->max_requests + sandbox_host_child_instances(o));
    uint64_t slot = ((uint64_t)4 << 30) + ((uint64_t)64 << 20);
    uint64_t bytes = slots * slot;
    void *memory = MAP_FAILED;
    if (bytes <= SIZE_MAX)
        memory = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    if (memory == MAP_FAILED)
        return realm_fail(
            error, REALM_NO_MEMORY,
            "%" PRIu64 " GiB of address space for %d sandboxes cannot be reserved; raise the "
            "limit on address space (ulimit -v) or allow fewer sandboxes (--sandboxes)",
            bytes >> 30, o->max_requests);
    munmap(memory, (size_t)bytes);
    return REALM_OK;
}

realm_status wasm_engines_open(wasm_engine_t *engines[2], const sandbox_host_options *options,
                               realm_error *error)
{
    realm_status status = check_address_space(options, error);
    if (status != REALM_OK)
        return status;
    wasm_config_t *c = settings();
    pool(c, options);
    engines[0] = wasm_engine_new_with_config(c);

    c = settings();
    wasmtime_config_memory_reservation_set(c, options->max_memory64_bytes);
    engines[1] = wasm_engine_new_with_config(c);
    if (!engines[0] || !engines[1])
        return realm_fail(error, REALM_NO_MEMORY,
                          "Wasmtime cannot reserve address space for %d sandboxes",
                          options->max_requests);
    return REALM_OK;
}

realm_status wasm_engines_fail(realm_error *error, realm_status status, wasmtime_error_t *e,
                               const char *what)
{
    wasm_name_t message;
    wasmtime_error_message(e, &message);
    wasmtime_error_delete(e);
    char text[REALM_ERROR_MESSAGE_SIZE];
    size_t n = 0;
    int blank = 1;
    for (size_t i = 0; i < message.size && message.data[i] && n + 1 < sizeof text; i++) {
        char b = message.data[i];
        int is_blank = b == '\n' || b == ' ' || b == '\t';
        if (is_blank && blank)
            continue;
        text[n++] = is_blank ? ' ' : b;
        blank = is_blank;
    }
    text[n] = '\0';
    wasm_name_delete(&message);
    return realm_fail(error, status, "%s: %s", what, text);
}
