/* tests/unit/server/grpc_test.c: gRPC's frames, gzip and header forms, and protobuf messages as JSON, from good
 * bytes, from good bytes cut anywhere, and from bytes that no client of good will sends. Messages are made by
 * protobuf-c. */
#include "unit/unit.h"

#include <zlib.h>

#include "realm/v1/inference.pb-c.h"
#include "server/grpc.h"
#include "server/grpc_json.h"

#define GENERATE (&realm__v1__generate_request__descriptor)
#define CHAT     (&realm__v1__chat_request__descriptor)

/* ---- frames ---- */

static void a_frame_is_whole_with_its_last_byte(void **state)
{
    (void)state;
    buffer out;
    buffer_init(&out, SIZE_MAX);
    memcpy(grpc_frame_add(&out, 3), "abc", 3);
    memset(grpc_frame_add(&out, 300), 'x', 300);
    assert_int_equal(out.size, 5 + 3 + 5 + 300);
    grpc_frame frame;
    for (size_t size = 0; size < 8; size++)
        assert_int_equal(grpc_frame_read(out.data, size, 1000, &frame), GRPC_FRAME_PART);
    assert_int_equal(grpc_frame_read(out.data, out.size, 1000, &frame), GRPC_FRAME_WHOLE);
    assert_int_equal(frame.used, 8);
    assert_int_equal(frame.size, 3);
    assert_memory_equal(frame.data, "abc", 3);
    assert_false(frame.is_compressed);
    assert_int_equal(grpc_frame_read(out.data + 8, out.size - 8, 1000, &frame), GRPC_FRAME_WHOLE);
    assert_int_equal(frame.used, 305);
    buffer_release(&out);
}

static void a_hostile_length_is_told_from_the_prefix(void **state)
{
    (void)state;
    grpc_frame frame;
    static const uint8_t largest[] = {0, 0xFF, 0xFF, 0xFF, 0xFF};
    assert_int_equal(grpc_frame_read(largest, 5, 1 << 20, &frame), GRPC_FRAME_TOO_LARGE);
    assert_int_equal(grpc_frame_read(largest, 5, SIZE_MAX, &frame), GRPC_FRAME_PART);
    static const uint8_t just[] = {1, 0, 0, 0, 4, 'a', 'b', 'c', 'd'};
    assert_int_equal(grpc_frame_read(just, 9, 3, &frame), GRPC_FRAME_TOO_LARGE);
    assert_int_equal(grpc_frame_read(just, 9, 4, &frame), GRPC_FRAME_WHOLE);
    assert_true(frame.is_compressed);
    static const uint8_t flag[] = {2};
    assert_int_equal(grpc_frame_read(flag, 1, 3, &frame), GRPC_FRAME_BAD);
    static const uint8_t empty[] = {0, 0, 0, 0, 0};
    assert_int_equal(grpc_frame_read(empty, 5, 0, &frame), GRPC_FRAME_WHOLE);
    assert_int_equal(frame.size, 0);
}

/* ---- gzip ---- */

static size_t gzip(const void *data, size_t size, uint8_t *out, size_t room)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)data,
                  .avail_in = (uInt)size,
                  .next_out = out,
                  .avail_out = (uInt)room};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 31, 9, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return room - z.avail_out;
}

static void gzip_is_inflated_up_to_the_limit_and_no_further(void **state)
{
    (void)state;
    enum { SIZE = 1000000 };
    char *text = calloc(1, SIZE);
    uint8_t packed[4096];
    buffer out;
    memset(text, 'a', SIZE);
    size_t size = gzip(text, SIZE, packed, sizeof packed / 2);
    buffer_init(&out, SIZE_MAX);
    assert_int_equal(grpc_gunzip(packed, size, SIZE, &out), REALM_OK);
    assert_int_equal(out.size, SIZE);
    assert_memory_equal(out.data, text, SIZE);
    buffer_clear(&out);
    assert_int_equal(grpc_gunzip(packed, size, SIZE - 1, &out), REALM_TOO_LARGE);
    assert_true(out.size < SIZE);
    buffer_clear(&out);
    size_t two = size + gzip("tail", 4, packed + size, sizeof packed - size);
    assert_int_equal(grpc_gunzip(packed, two, SIZE + 4, &out), REALM_OK);
    assert_int_equal(out.size, SIZE + 4);
    for (size_t cut = 0; cut < size; cut++) {
        buffer_clear(&out);
        assert_int_equal(grpc_gunzip(packed, cut, SIZE, &out), REALM_CORRUPT);
    }
    buffer_clear(&out);
    assert_int_equal(grpc_gunzip("not gzip", 8, SIZE, &out), REALM_CORRUPT);
    buffer_release(&out);
    free(text);
}

/* ---- headers and trailers ---- */

static void timeouts_are_digits_and_a_unit(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ns;
    } good[] = {{"1n", 1},
                {"20u", 20000},
                {"300m", 300000000},
                {"4S", 4000000000},
                {"0S", 0},
                {"2M", 120000000000},
                {"1H", 3600000000000},
                {"99999999S", 99999999000000000},
                {"99999999H", UINT64_MAX}};
    static const char *const bad[] = {"",    "1",    "S",          "1s",  "1SS", "-1S",
                                      "1 S", "1.5S", "123456789S", "+1S", "0x1S"};
    uint64_t ns;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(grpc_timeout_parse(good[i].text, &ns));
        assert_int_equal(ns, good[i].ns);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(grpc_timeout_parse(bad[i], &ns));
}

/* The text of the interop case special_status_message. */
static void messages_are_percent_encoded(void **state)
{
    (void)state;
    buffer out;
    buffer_init(&out, SIZE_MAX);
    grpc_add_encoded(&out, "\t\ntest with whitespace\r\nand Unicode BMP \u263A and 100% non-BMP "
                           "\U0001F608\t\n");
    assert_string_equal(buffer_text(&out),
                        "%09%0Atest with whitespace%0D%0Aand Unicode BMP %E2%98%BA and 100%25 "
                        "non-BMP %F0%9F%98%88%09%0A");
    buffer_release(&out);
}

static void refusals_have_their_canonical_codes(void **state)
{
    (void)state;
    assert_int_equal(grpc_code_of(400, "invalid_value"), GRPC_INVALID_ARGUMENT);
    assert_int_equal(grpc_code_of(401, "invalid_api_key"), GRPC_UNAUTHENTICATED);
    assert_int_equal(grpc_code_of(403, "permission_denied"), GRPC_PERMISSION_DENIED);
    assert_int_equal(grpc_code_of(404, "model_not_found"), GRPC_NOT_FOUND);
    assert_int_equal(grpc_code_of(404, "method_not_found"), GRPC_UNIMPLEMENTED);
    assert_int_equal(grpc_code_of(400, "unsupported_encoding"), GRPC_UNIMPLEMENTED);
    assert_int_equal(grpc_code_of(413, "request_too_large"), GRPC_RESOURCE_EXHAUSTED);
    assert_int_equal(grpc_code_of(429, "rate_limit_exceeded"), GRPC_RESOURCE_EXHAUSTED);
    assert_int_equal(grpc_code_of(500, "program_trapped"), GRPC_INTERNAL);
    assert_int_equal(grpc_code_of(503, "draining"), GRPC_UNAVAILABLE);
    assert_int_equal(grpc_code_of(504, "deadline_exceeded"), GRPC_DEADLINE_EXCEEDED);
}

/* ---- messages as JSON ---- */

static ProtobufCBinaryData text(const char *words)
{
    return grpc_text(words, strlen(words));
}

static char *json_of(const ProtobufCMessageDescriptor *type, const void *data, size_t size)
{
    char path[GRPC_JSON_PATH_SIZE];
    realm_error error;
    json_t *value;
    assert_status(grpc_json_read(&value, type, data, size, 1, path, &error), REALM_OK, error);
    char *printed = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(value);
    return printed;
}

static size_t pack_chat(uint8_t *bytes)
{
    Realm__V1__ChatRequest request = REALM__V1__CHAT_REQUEST__INIT;
    Realm__V1__Message first = REALM__V1__MESSAGE__INIT, second = REALM__V1__MESSAGE__INIT;
    Realm__V1__Message *messages[] = {&first, &second};
    Realm__V1__Sampling sampling = REALM__V1__SAMPLING__INIT;
    Realm__V1__Sampling__LogitBiasEntry bias = REALM__V1__SAMPLING__LOGIT_BIAS_ENTRY__INIT;
    Realm__V1__Sampling__LogitBiasEntry *biases[] = {&bias};
    request.model = text("m");
    request.messages = messages;
    request.n_messages = 2;
    first.role = text("user");
    first.content = grpc_text("a\0b", 3);
    second.role = text("assistant");
    second.content = text("\u263A");
    request.sampling = &sampling;
    sampling.has_temperature_case = REALM__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    sampling.temperature = 0;
    sampling.has_seed_case = REALM__V1__SAMPLING__HAS_SEED_SEED;
    sampling.seed = -7;
    sampling.logit_bias = biases;
    sampling.n_logit_bias = 1;
    bias.key = 5;
    bias.value = -1.5;
    return realm__v1__chat_request__pack(&request, bytes);
}

static void a_message_becomes_json(void **state)
{
    (void)state;
    uint8_t bytes[256];
    size_t size = pack_chat(bytes);
    char *printed = json_of(CHAT, bytes, size);
    assert_string_equal(printed,
                        "{\"messages\":[{\"content\":\"a\\u0000b\",\"role\":\"user\"},{\"content\":"
                        "\"\u263A\",\"role\":\"assistant\"}],\"model\":\"m\",\"sampling\":{"
                        "\"logit_bias\":[{\"key\":5,\"value\":-1.5}],\"seed\":-7,\"temperature\":"
                        "0.0}}");
    free(printed);
}

/* Every prefix either is a message (it ends between two fields) or is refused with a sentence. */
static void a_message_cut_anywhere_is_refused_or_shorter(void **state)
{
    (void)state;
    uint8_t bytes[256];
    size_t size = pack_chat(bytes), whole = 0;
    for (size_t cut = 0; cut < size; cut++) {
        char path[GRPC_JSON_PATH_SIZE];
        realm_error error = {0};
        json_t *value = NULL;
        uint8_t *exact = malloc(cut + 1);
        memcpy(exact, bytes, cut);
        realm_status status = grpc_json_read(&value, CHAT, exact, cut, 1, path, &error);
        if (status)
            assert_true(status == REALM_INVALID && error.message[0]);
        whole += status == REALM_OK;
        json_decref(value);
        free(exact);
    }
    assert_int_equal(whole, 4); /* nothing, model, a message, two */
}

static void numbers_come_packed_or_not_and_the_last_of_a_oneof_holds(void **state)
{
    (void)state;
    /* tokens {ids: packed 1, 300}, tokens {ids: 7, alone}: merged */
    static const uint8_t lists[] = {0x1A, 5, 0x0A, 3, 1, 0xAC, 2, 0x1A, 2, 0x08, 7};
    char *printed = json_of(GENERATE, lists, sizeof lists);
    assert_string_equal(printed, "{\"tokens\":{\"ids\":[1,300,7]}}");
    free(printed);
    /* text "x", then tokens: the text is given up */
    static const uint8_t both[] = {0x12, 1, 'x', 0x1A, 2, 0x08, 7};
    printed = json_of(GENERATE, both, sizeof both);
    assert_string_equal(printed, "{\"tokens\":{\"ids\":[7]}}");
    free(printed);
    /* model "a", model "b" */
    static const uint8_t twice[] = {0x0A, 1, 'a', 0x0A, 1, 'b'};
    printed = json_of(GENERATE, twice, sizeof twice);
    assert_string_equal(printed, "{\"model\":\"b\"}");
    free(printed);
    /* a negative int32 is ten bytes */
    static const uint8_t minus[] = {0x1A, 11,   0x08, 0xFF, 0xFF, 0xFF, 0xFF,
                                    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1};
    printed = json_of(GENERATE, minus, sizeof minus);
    assert_string_equal(printed, "{\"tokens\":{\"ids\":[-1]}}");
    free(printed);
}

#define BAD(...)                                                                                   \
    {                                                                                              \
        (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})                     \
    }

static void what_is_wrong_is_named(void **state)
{
    (void)state;
    const struct {
        struct {
            const uint8_t *data;
            size_t size;
        } bytes;
        const char *path, *holds;
    } wrong[] = {
        {BAD(0x0A, 2, 0xC3, 0x28), "model", "must be UTF-8"},
        {BAD(0x0A, 5, 'a'), "model", "is cut short"},
        {BAD(0x08, 5), "model", "is of another type"},
        {BAD(0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F), "model", "is cut short"},
        {BAD(0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1), "model",
         "more than ten bytes"},
        {BAD(0xA8, 6, 1), "", "has no field 101 that this server knows of"},
        {BAD(0x00, 1), "", "whose number cannot be"},
        {BAD(0x0B), "model", "is of another type"},
        {BAD(0x12, 2, 0x12, 2), "messages[0].content", "is cut short"},
        {BAD(0x12, 0, 0x12, 3, 0x12, 1, 0xFF), "messages[1].content", "must be UTF-8"},
        {BAD(0x1A, 9, 0x11, 0, 0, 0, 0, 0, 0, 0xF8, 0x7F), "sampling.temperature",
         "must be a finite number"},
        {BAD(0x80), "", "is cut short"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char path[GRPC_JSON_PATH_SIZE];
        realm_error error;
        json_t *value;
        assert_status(
            grpc_json_read(&value, CHAT, wrong[i].bytes.data, wrong[i].bytes.size, 1, path, &error),
            REALM_INVALID, error);
        assert_string_equal(path, wrong[i].path);
        assert_holds(error.message, wrong[i].holds);
    }
}

static void what_is_not_known_is_passed_over_where_that_is_asked_for(void **state)
{
    (void)state;
    /* field 101 as each wire type, then the model */
    static const uint8_t bytes[] = {0xA8, 6, 1, 0xA9, 6,    1, 2, 3, 4, 5, 6,    7, 8,
                                    0xAA, 6, 1, 'x',  0xAD, 6, 1, 2, 3, 4, 0x0A, 1, 'm'};
    char path[GRPC_JSON_PATH_SIZE];
    realm_error error;
    json_t *value;
    assert_status(grpc_json_read(&value, CHAT, bytes, sizeof bytes, 0, path, &error), REALM_OK,
                  error);
    assert_int_equal(json_object_size(value), 1);
    assert_string_equal(json_string_value(json_object_get(value, "model")), "m");
    json_decref(value);
    static const uint8_t group[] = {0xAB, 6, 0xAC, 6};
    assert_status(grpc_json_read(&value, CHAT, group, sizeof group, 0, path, &error), REALM_INVALID,
                  error);
    assert_holds(error.message, "group");
}

/* Two bytes each make an object: what is small on the wire may not be large in memory. */
static void empty_messages_without_end_are_refused(void **state)
{
    (void)state;
    enum { COUNT = 70000 };
    uint8_t *bytes = malloc(2 * COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        bytes[2 * i] = 0x12;
        bytes[2 * i + 1] = 0;
    }
    char path[GRPC_JSON_PATH_SIZE];
    realm_error error;
    json_t *value;
    assert_status(grpc_json_read(&value, CHAT, bytes, 2 * COUNT, 1, path, &error), REALM_INVALID,
                  error);
    assert_string_equal(path, "messages[65536]");
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_is_whole_with_its_last_byte),
        cmocka_unit_test(a_hostile_length_is_told_from_the_prefix),
        cmocka_unit_test(gzip_is_inflated_up_to_the_limit_and_no_further),
        cmocka_unit_test(timeouts_are_digits_and_a_unit),
        cmocka_unit_test(messages_are_percent_encoded),
        cmocka_unit_test(refusals_have_their_canonical_codes),
        cmocka_unit_test(a_message_becomes_json),
        cmocka_unit_test(a_message_cut_anywhere_is_refused_or_shorter),
        cmocka_unit_test(numbers_come_packed_or_not_and_the_last_of_a_oneof_holds),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(what_is_not_known_is_passed_over_where_that_is_asked_for),
        cmocka_unit_test(empty_messages_without_end_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
