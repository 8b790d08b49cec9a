/* request.c: the functions about the request itself. */
#include "check.h"

static int32_t check(void)
{
    static char bytes[4096], part[4096];
    int32_t size = realm_request_read(0, 0, 0);
    CHECK(size > 2 && size < 4096);
    CHECK_EQUAL(realm_request_read(0, bytes, sizeof bytes), size);
    CHECK(bytes[0] == '{' && bytes[size - 1] == '}');
    CHECK_EQUAL(realm_request_read(1, part, 3), size - 1); /* says what is left, writes what fits */
    CHECK(part[0] == bytes[1] && part[2] == bytes[3] && part[3] == 0);
    CHECK_EQUAL(realm_request_read((size_t)size, part, 3), 0);
    CHECK_EQUAL(realm_request_read((size_t)-1, part, 3), 0);

    int64_t now = realm_now_ms();
    CHECK(now > 1500000000000 && realm_now_ms() >= now);
    int64_t draw = realm_random();
    CHECK(draw != realm_random());

    for (int32_t level = 0; level <= 3; level++)
        CHECK_EQUAL(realm_log(level, REALM_TEXT("a line")), 0);
    CHECK_EQUAL(realm_respond_text("", 0), 0);
    CHECK_EQUAL(realm_respond_json(REALM_TEXT("{\"answer\":[1,2.5,null]}")), 0);
    return PASS;
}
