/* tests/fuzz/fuzz_grpc.c: any bytes as gRPC's frames, and what is in them as gzip and as protobuf messages.
 *
 * A frame lies inside of what was given; inflating keeps to its limit; a message is refused with a sentence, or
 * is JSON that can be printed. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "realm/v1/inference.pb-c.h"
#include "server/grpc_json.h"
#include "server/grpc_message.h"

#define LIMIT ((size_t)1 << 16)

static void read_as(const ProtobufCMessageDescriptor *type, const void *data, size_t size,
                    int strict)
{
    json_t *value = NULL;
    char path[GRPC_JSON_PATH_SIZE];
    realm_error error = {0};
    realm_status status = grpc_json_read(&value, type, data, size, strict, path, &error);
    promise(strlen(path) < sizeof path, "paths end");
    if (status) {
        promise(!value && error.message[0], "refusals come with a sentence");
        return;
    }
    char *text = json_dumps(value, JSON_COMPACT);
    promise(text != NULL, "what was read can be printed");
    free(text);
    json_decref(value);
}

static void read_message(const char *data, size_t size)
{
    read_as(&realm__v1__chat_request__descriptor, data, size, 1);
    read_as(&realm__v1__generate_request__descriptor, data, size, 1);
    read_as(&realm__v1__embed_request__descriptor, data, size, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    grpc_frame frame;
    for (size_t at = 0; at < size; at += frame.used) {
        if (grpc_frame_read(data + at, size - at, LIMIT, &frame) != GRPC_FRAME_WHOLE)
            break;
        promise(frame.used > 0 && frame.used <= size - at && frame.size <= LIMIT,
                "a frame lies inside of what was given");
        if (frame.is_compressed) {
            buffer out;
            buffer_init(&out, SIZE_MAX);
            if (grpc_gunzip(frame.data, frame.size, LIMIT, &out) == REALM_OK)
                read_message(buffer_text(&out), out.size);
            promise(out.size <= LIMIT, "inflating keeps to its limit");
            buffer_release(&out);
        } else {
            read_message(frame.data, frame.size);
        }
    }
    read_message((const char *)data, size);
    return 0;
}
