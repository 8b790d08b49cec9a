/* weights64.c: a 64-bit program that holds the whole model in its own memory, and costs none.
 *
 * memory64_load_layer maps a layer's weights from the model's file at an address of this program's
 * memory, private and copy-on-write: sixteen tenants may each "hold" the model and the machine
 * holds it once. The program maps every layer, adds up all bytes (so that all of them are really
 * read), writes into one of its pages and sees the file's bytes again after mapping it anew: the
 * write was its own. Needs the capability `tensors`. */
#include "realm_json.h"

#define MAPPED_AT (1ull << 32) /* the 4 GiB mark: no 32-bit program could point there */

static uint64_t sum_bytes(const uint8_t *data, uint64_t size)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < size; i++)
        sum += data[i];
    return sum;
}

REALM_PROGRAM
{
    static char info_text[8192], directory_text[16384];
    int32_t model = realm_model_open("", 0);
    if (model < 0)
        return model;
    int32_t size = realm_model_info(model, info_text, sizeof info_text);
    if (size < 0 || (size_t)size > sizeof info_text)
        return REALM_E_TOO_LARGE;
    realm_slice info = {info_text, (size_t)size};
    int64_t n_layers = realm_json_int(realm_json_get(info, "n_layers"), 0);

    /* Room for the mapping: addresses only, nothing is touched. */
    const uint64_t room = 1ull << 30;
    uint64_t pages = (MAPPED_AT + room) >> 16;
    uint64_t have = (uint64_t)__builtin_wasm_memory_size(0);
    if (have < pages && __builtin_wasm_memory_grow(0, pages - have) == (size_t)-1)
        return realm_fail(REALM_E_NO_MEMORY, "the sandbox's memory limit is below 5 GiB");

    realm_text report = {0};
    uint64_t mapped = 0, total = 0, n_tensors = 0;
    for (int64_t layer = 0; layer < n_layers; layer++) {
        int32_t bytes = realm_memory64_load_layer(model, (int32_t)layer, (void *)MAPPED_AT, room,
                                                  directory_text, sizeof directory_text);
        if (bytes < 0)
            return bytes;
        if ((size_t)bytes > sizeof directory_text)
            return REALM_E_TOO_LARGE;
        realm_slice tensors = realm_json_get((realm_slice){directory_text, (size_t)bytes},
                                             "tensors");
        size_t at = 0;
        for (realm_slice tensor; (tensor = realm_json_next(tensors, &at)).size; n_tensors++) {
            uint64_t address = (uint64_t)realm_json_int(realm_json_get(tensor, "address"), 0);
            uint64_t tensor_bytes = (uint64_t)realm_json_int(realm_json_get(tensor, "bytes"), 0);
            total += sum_bytes((const uint8_t *)address, tensor_bytes);
            mapped += tensor_bytes;
        }
        if (layer == 0) { /* the write test, on the first byte of the first tensor */
            at = 0;
            realm_slice first = realm_json_next(tensors, &at);
            uint8_t *byte = (uint8_t *)(uint64_t)realm_json_int(realm_json_get(first, "address"),
                                                                0);
            uint8_t kept = *byte;
            *byte = (uint8_t)~kept;
            if (*byte != (uint8_t)~kept)
                return realm_fail(REALM_E_INTERNAL, "a write into the mapping was lost");
            bytes = realm_memory64_load_layer(model, 0, (void *)MAPPED_AT, room, directory_text,
                                              sizeof directory_text);
            if (bytes < 0 || *byte != kept)
                return realm_fail(REALM_E_INTERNAL, "a private write reached the model");
        }
    }
    realm_text_add_z(&report, "mapped ");
    realm_text_add_int(&report, (int64_t)n_tensors);
    realm_text_add_z(&report, " tensors of ");
    realm_text_add_int(&report, n_layers);
    realm_text_add_z(&report, " layers, ");
    realm_text_add_int(&report, (int64_t)mapped);
    realm_text_add_z(&report, " bytes, byte sum ");
    realm_text_add_int(&report, (int64_t)total);
    realm_respond_text(report.data, report.size);
    return 0;
}
