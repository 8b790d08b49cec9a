/* tests/unit/base/map_test.c: base/map.h against a list that is searched from one end to the
 * other. */
#include "unit/unit.h"

#include "base/map.h"
#include "base/rng.h"

#define KEYS 300 /* few, so that adding, replacing and removing all happen often */

typedef struct model {
    void *values[KEYS]; /* NULL: absent */
    size_t count;
} model;

/* Keys of 0 to 39 bytes with zeroes among them; different for different numbers. */
static size_t make_key(unsigned number, char key[64])
{
    size_t size = number % 40;
    memset(key, 0, 64);
    for (size_t i = 0; i < size; i++)
        key[i] = (char)(i % 3 ? 0 : number >> (i % 2 * 8));
    if (size >= 2) {
        memcpy(key + size - 2, &(uint16_t){(uint16_t)number}, 2);
    }
    return size;
}

static void agree(const map *m, const model *naive)
{
    size_t position = 0, walked = 0;
    assert_int_equal(m->count, naive->count);
    while (map_next(m, &position))
        walked++;
    assert_int_equal(walked, naive->count);
}

static void random_operations_agree_with_a_naive_model(void **state)
{
    (void)state;
    static int things[1000];
    map m;
    model naive = {0};
    rng random;
    map_init(&m);
    rng_init(&random, 42);
    for (int step = 0; step < 200000; step++) {
        unsigned number = (unsigned)(rng_next(&random) % KEYS);
        if (number % 40 < 2 && number >= 40)
            continue; /* shorter than its number */
        char key[64];
        size_t size = make_key(number, key);
        void **expected = &naive.values[number];
        void *value = &things[rng_next(&random) % 1000], *old;
        switch (rng_next(&random) % 3) {
        case 0:
            assert_int_equal(map_put(&m, key, size, value, &old), REALM_OK);
            assert_ptr_equal(old, *expected);
            naive.count += *expected == NULL;
            *expected = value;
            break;
        case 1:
            assert_ptr_equal(map_remove(&m, key, size), *expected);
            naive.count -= *expected != NULL;
            *expected = NULL;
            break;
        default: assert_ptr_equal(map_get(&m, key, size), *expected);
        }
        if (step % 1000 == 0)
            agree(&m, &naive);
    }
    agree(&m, &naive);
    map_release(&m);
}

static void an_empty_map_answers(void **state)
{
    (void)state;
    map m;
    size_t position = 0;
    map_init(&m);
    assert_null(map_get(&m, "x", 1));
    assert_null(map_remove(&m, "x", 1));
    assert_null(map_next(&m, &position));
    assert_int_equal(map_put(&m, NULL, 0, &m, NULL), REALM_OK); /* the empty key is a key */
    assert_ptr_equal(map_get(&m, NULL, 0), &m);
    assert_ptr_equal(map_get(&m, "", 0), &m);
    map_release(&m);
}

/* Blocks whose second half cancels the hash's constant made every such key collide, whatever the
 * seed, as long as the state stood in only one factor. */
static void keys_made_to_cancel_the_hash_do_not_collide(void **state)
{
    (void)state;
    const uint64_t constants[] = {0xE7037ED1A0B428DBu, 0xA0761D6478BD642Fu, 0};
    enum { TRIES = 200 };
    for (size_t c = 0; c < 3; c++) {
        uint64_t hashes[TRIES], seed = map_seed();
        for (uint64_t i = 0; i < TRIES; i++) {
            uint64_t key[4] = {i, constants[c], 7, constants[c]};
            hashes[i] = map_hash(seed, key, sizeof key);
            for (uint64_t j = 0; j < i; j++)
                assert_true(hashes[i] != hashes[j]);
        }
    }
}

static void seeds_and_every_bit_change_the_hash(void **state)
{
    (void)state;
    unsigned char key[64] = {0};
    for (size_t size = 0; size <= sizeof key; size++) {
        uint64_t plain = map_hash(1, key, size);
        assert_true(plain != map_hash(2, key, size));
        assert_true(size == 0 || plain != map_hash(1, key, size - 1));
        for (size_t bit = 0; bit < size * 8; bit++) {
            key[bit / 8] ^= (unsigned char)(1 << bit % 8);
            assert_true(plain != map_hash(1, key, size));
            key[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_agree_with_a_naive_model),
        cmocka_unit_test(an_empty_map_answers),
        cmocka_unit_test(keys_made_to_cancel_the_hash_do_not_collide),
        cmocka_unit_test(seeds_and_every_bit_change_the_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
