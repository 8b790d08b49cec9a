/* map.c: the model's own pages in a 64-bit memory, and what writing there changes. */
#include "check.h"

static int32_t check(void)
{
    static char json[65536];
    int32_t model = realm_model_open("", 0);
    int32_t size = realm_memory64_load_layer(model, 0, 0, 0, json, sizeof json);
    CHECK(size > 0 && size < (int32_t)sizeof json);
    int64_t bytes = realm_json_int(realm_json_get((realm_slice){json, (size_t)size}, "bytes"), -1);
    CHECK(bytes > 0);
    char *memory = realm_alloc((size_t)bytes + 65536);
    CHECK(memory);
    char *room = (char *)(((size_t)memory + 65535) & ~(size_t)65535);
    CHECK_EQUAL(realm_memory64_load_layer(model, 0, room, 4096, json, sizeof json),
                REALM_E_TOO_LARGE);
    CHECK_EQUAL(realm_memory64_load_layer(model, 1 << 20, room, (size_t)bytes, json, sizeof json),
                REALM_E_NOT_FOUND);
    size = realm_memory64_load_layer(model, 0, room, (size_t)bytes, json, sizeof json);
    CHECK(size > 0);

    realm_slice tensors = realm_json_get((realm_slice){json, (size_t)size}, "tensors");
    size_t at = 0, count = 0;
    for (realm_slice tensor; (tensor = realm_json_next(tensors, &at)).size; count++) {
        char *data = (char *)(size_t)realm_json_int(realm_json_get(tensor, "address"), 0);
        int64_t length = realm_json_int(realm_json_get(tensor, "bytes"), 0);
        CHECK(data >= room && length > 0 && data + length <= room + bytes);
        int32_t changes = 0; /* weights are not one byte over and over */
        for (int64_t i = 1; i < length; i++)
            changes += data[i] != data[i - 1];
        CHECK(changes > 16);
        char was = data[0];
        data[0] = (char)~was; /* our own copy of the page */
        CHECK(data[0] == (char)~was);
    }
    CHECK(count >= 9);
    return PASS;
}
