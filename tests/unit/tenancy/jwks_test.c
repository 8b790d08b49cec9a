/* tests/unit/tenancy/jwks_test.c: keys from files and URLs: rotation, failure, and tokens through the tenancy. */
#include "unit/unit.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "tenancy/tenancy.h"
#include "unit/tenancy/folder.h"

static realm_error error;

#define SECRET       "0123456789abcdef0123456789abcdef"
#define OTHER_SECRET "fedcba9876543210fedcba9876543210"

/* Ed25519 public keys as sets; any 32 bytes are one. */
#define ONE_KEY                                                                                    \
    "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"1\",\"x\":"                         \
    "\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}"
#define TWO_KEYS                                                                                   \
    "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"1\",\"x\":"                         \
    "\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"},"                                            \
    "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"2\",\"x\":"                                    \
    "\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}"

static void write_keys(const char *text)
{
    assert_status(file_write(folder_path("keys"), text, strlen(text), &error), REALM_OK, error);
}

static int count_keys(jwks *j)
{
    jwt_keys *keys = jwks_keys(j);
    int count = keys ? jwt_keys_count(keys) : 0;
    jwt_keys_release(keys);
    return count;
}

static int wait_for_keys(jwks *j, int count)
{
    uint64_t end = clock_ns() + A_MINUTE_NS;
    while (count_keys(j) != count && clock_ns() < end)
        usleep(10000);
    return count_keys(j) == count;
}

static void a_file_is_read_again(void **state)
{
    (void)state;
    jwks *j;
    jwks_options options = {.source = folder_path("keys"), .refresh_s = 1};
    assert_int_equal(jwks_open(&j, &options, &error), REALM_NOT_FOUND);
    write_keys(ONE_KEY);
    assert_status(jwks_open(&j, &options, &error), REALM_OK, error);
    assert_int_equal(count_keys(j), 1);
    write_keys(TWO_KEYS);
    assert_true(wait_for_keys(j, 2));
    write_keys("broken"); /* the last good ones stay */
    usleep(1300000);
    assert_int_equal(count_keys(j), 2);
    jwks_close(j);
}

static void an_unknown_key_has_the_source_read_soon(void **state)
{
    (void)state;
    jwks *j;
    jwks_options options = {.source = folder_path("keys"), .refresh_s = 3600, .min_refresh_s = 1};
    write_keys(ONE_KEY);
    assert_status(jwks_open(&j, &options, &error), REALM_OK, error);
    write_keys(TWO_KEYS);
    usleep(1200000);
    assert_int_equal(count_keys(j), 1); /* nobody asked */
    jwks_missed(j);
    assert_true(wait_for_keys(j, 2));
    jwks_close(j);
}

static void keys_that_are_too_old_are_none(void **state)
{
    (void)state;
    jwks *j;
    jwks_options options = {.source = folder_path("keys"), .refresh_s = 3600, .max_stale_s = 1};
    write_keys(ONE_KEY);
    int seen = 0;
    for (uint64_t end = clock_ns() + A_MINUTE_NS; !seen && clock_ns() < end;) {
        assert_status(jwks_open(&j, &options, &error), REALM_OK, error);
        seen = count_keys(j); /* none where this thread stood still for a second */
        assert_true(wait_for_keys(j, 0));
        jwks_close(j);
    }
    assert_int_equal(seen, 1);
}

/* ---- a server of two answers ---- */

static int g_listener;
static atomic_int g_served;
static const char *_Atomic g_body;

static void *serve(void *context)
{
    (void)context;
    for (int client; (client = accept(g_listener, NULL, NULL)) >= 0;) {
        char request[2048], answer[2048];
        ssize_t got = read(client, request, sizeof request);
        const char *body = atomic_load(&g_body);
        int size = snprintf(answer, sizeof answer,
                            "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                            body ? "200 OK" : "500 Broken", body ? strlen(body) : 0,
                            body ? body : "");
        if (got > 0)
            got = write(client, answer, (size_t)size);
        close(client);
        atomic_fetch_add(&g_served, 1);
    }
    return NULL;
}

static void a_url_is_read_and_read_again(void **state)
{
    (void)state;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    pthread_t server;
    char url[64];
    jwks *j;
    g_listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(g_listener, (void *)&address, size), 0);
    assert_int_equal(listen(g_listener, 8), 0);
    assert_int_equal(getsockname(g_listener, (void *)&address, &size), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, NULL), 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/keys", ntohs(address.sin_port));
    jwks_options options = {.source = url, .refresh_s = 1, .min_refresh_s = 1};
    /* A server that is down when we start is tried again. */
    assert_status(jwks_open(&j, &options, &error), REALM_OK, error);
    assert_int_equal(count_keys(j), 0);
    atomic_store(&g_body, ONE_KEY);
    assert_true(wait_for_keys(j, 1));
    atomic_store(&g_body, TWO_KEYS);
    assert_true(wait_for_keys(j, 2));
    /* Tokens with invented keys make no more traffic than min_refresh_s allows. */
    int before = atomic_load(&g_served);
    uint64_t began = clock_ns();
    for (int i = 0; i < 100; i++) {
        jwks_missed(j);
        usleep(10000);
    }
    int seconds = (int)((clock_ns() - began) / 1000000000u);
    assert_true(atomic_load(&g_served) - before <= 3 + seconds);
    jwks_close(j);
    shutdown(g_listener, SHUT_RDWR);
    close(g_listener);
    pthread_join(server, NULL);
}

static void sources_that_could_be_forged_are_refused(void **state)
{
    (void)state;
    static const struct {
        jwks_options options;
        const char *word;
    } wrong[] = {{{.source = "http://keys.example/"}, "https"},
                 {{.source = "HTTP://127.0.0.1.evil.example/"}, "https"},
                 {{.source = "http://localhost@evil.example/"}, "https"},
                 {{.source = "https://keys.example/", .hmac = 1}, "file"},
                 {{.source = ""}, "file or URL"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        jwks *j;
        assert_int_equal(jwks_open(&j, &wrong[i].options, &error), REALM_INVALID);
        assert_holds(error.message, wrong[i].word);
    }
}

/* ---- through the tenancy ---- */

/* Made by PyJWT with SECRET: {"tenant": "acme", "exp": 4000000000}, and the same for "nobody". */
static const char of_acme[] = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
                              "eyJ0ZW5hbnQiOiJhY21lIiwiZXhwIjo0MDAwMDAwMDAwfQ."
                              "WEkTGyS1gtUTnZS9nNpLEsYpJZ2mhEQBCO5TEimA1BY";
static const char of_nobody[] = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
                                "eyJ0ZW5hbnQiOiJub2JvZHkiLCJleHAiOjQwMDAwMDAwMDB9."
                                "lV6zJKdOAsdUjp5bUKioHJBrOckil0UOQcUKwttUZG8";

static realm_status try_token(tenancy *t, const char *token, identity *who)
{
    return tenancy_authenticate(t, token, strlen(token), who, &error);
}

static void a_bearer_token_is_its_tenants(void **state)
{
    (void)state;
    tenant_store *store;
    tenancy *t;
    uint32_t number;
    identity who;
    tenant_settings settings = settings_default();
    write_keys(SECRET "\n");
    assert_status(store_sqlite_open(&store, g_folder, &error), REALM_OK, error);
    assert_status(store->table->tenant_create(store, "acme", &settings, &number, &error), REALM_OK,
                  error);
    jwks_options keys = {.source = folder_path("keys"), .hmac = 1, .refresh_s = 1};
    jwt_rules rules = {.algorithms = JWT_HS256};
    tenancy_options options = {.store = store, .jwks = &keys, .jwt_rules = &rules};
    assert_status(tenancy_open(&t, &options, &error), REALM_OK, error);
    assert_true(tenancy_has_credentials(t));
    assert_status(try_token(t, of_acme, &who), REALM_OK, error);
    assert_int_equal(tenant_info_get(who.tenant)->number, number);
    assert_string_equal(who.key, "jwt");
    assert_int_equal(who.scopes, API_SCOPE_INFERENCE);
    identity_release(&who);
    assert_int_equal(try_token(t, of_nobody, &who), REALM_DENIED);
    assert_holds(error.message, "no tenant");
    write_keys(OTHER_SECRET); /* rotated: the old token is refused before long */
    realm_status status = REALM_OK;
    for (uint64_t until = clock_ns() + A_MINUTE_NS; status == REALM_OK && clock_ns() < until;) {
        usleep(10000);
        status = try_token(t, of_acme, &who);
        identity_release(&who);
    }
    assert_int_equal(status, REALM_DENIED);
    assert_status(tenancy_close(t, &error), REALM_OK, error);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_make, folder_remove)
    const struct CMUnitTest tests[] = {
        TEST(a_file_is_read_again),
        TEST(an_unknown_key_has_the_source_read_soon),
        TEST(keys_that_are_too_old_are_none),
        TEST(a_url_is_read_and_read_again),
        TEST(sources_that_could_be_forged_are_refused),
        TEST(a_bearer_token_is_its_tenants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
