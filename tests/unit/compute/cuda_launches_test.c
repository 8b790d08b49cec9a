/* tests/unit/compute/cuda_launches_test.c: which launches the CUDA backend makes of a layer's operations, without a
 * device. That they compute what they should is cuda_test.c's to show. */
#include "unit/compute/cpu_fixture.h"

#include "compute/backend_open.h"
#include "unit/compute/fake_cuda.h"

const backend_plugin *realm_backend_plugin(void);

enum { DIM = 128, HEADS = 2, COLS = DIM * HEADS, FF = 512, ROWS = 200 };

typedef struct network {
    backend *b;
    const backend_table *t;
    weight *gain, *q, *k, *v, *o, *gate, *up, *down;
    tensor x, kept, normed, room, queries, keys, values, attention, gates, ups, out;
    kv_store *kv;
} network;

static network open_network(void)
{
    static const float zeros[FF * COLS]; /* nobody computes with them */
    network n = {0};
    realm_error error;
    assert_status(realm_backend_plugin()->open(&n.b, 0, &error), REALM_OK, error);
    n.t = n.b->table;
    n.gain = open_weight(n.b, DTYPE_F32, 1, COLS, zeros);
    weight **square[] = {&n.q, &n.k, &n.v, &n.o};
    for (int i = 0; i < 4; i++)
        *square[i] = open_weight(n.b, DTYPE_F16, COLS, COLS, zeros);
    n.gate = open_of_pair(n.b, DTYPE_F16, FF, COLS, zeros, NULL);
    n.up = open_of_pair(n.b, DTYPE_F16, FF, COLS, zeros, n.gate);
    n.down = open_weight(n.b, DTYPE_F16, COLS, FF, zeros);
    tensor *all[] = {&n.x,    &n.kept,   &n.normed,    &n.room, &n.queries,
                     &n.keys, &n.values, &n.attention, &n.out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        *all[i] = open_tensor(n.b, ROWS, COLS, NULL);
    n.gates = open_tensor(n.b, ROWS, FF, NULL);
    n.ups = open_tensor(n.b, ROWS, FF, NULL);
    kv_layer_shape layer = {HEADS, DIM, DIM};
    kv_shape shape = {1, &layer, 16, DTYPE_F16};
    assert_status(n.t->kv_open(n.b, &n.kv, &shape, &error), REALM_OK, error);
    return n;
}

static void close_network(network *n)
{
    weight *all[] = {n->gain, n->q, n->k, n->v, n->o, n->gate, n->up, n->down};
    tensor *tensors[] = {&n->x,      &n->kept,      &n->normed, &n->room,  &n->queries, &n->keys,
                         &n->values, &n->attention, &n->out,    &n->gates, &n->ups};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        n->t->weight_close(n->b, all[i]);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        n->t->tensor_close(n->b, tensors[i]);
    n->t->kv_close(n->b, n->kv);
    n->t->close(n->b);
}

static tensor front(tensor t, int32_t rows)
{
    return tensor_rows(t, 0, rows);
}

/* How a layer differs from the usual one. */
enum { USUAL, KEEPS_ONE, APART /* adapters come between products and what is made of them */ };

/* A layer and the next one's first product, of n sequences with a row each or of one with n rows. */
static const char *walk(network *n, int32_t rows, int apart_sequences, int how)
{
    static const float frequencies[DIM / 2];
    const backend_table *t = n->t;
    backend *b = n->b;
    rope turn = {ROPE_NORMAL, DIM, frequencies, 1};
    attention_options o = {.layer = 0, .n_heads = HEADS, .scale = 1};
    int32_t positions[ROWS], sequences[ROWS], pages[16] = {0};
    const int32_t *tables[ROWS];
    for (int32_t i = 0; i < rows; i++) {
        positions[i] = apart_sequences ? 5 : i;
        sequences[i] = apart_sequences ? i : 0;
        tables[i] = pages;
    }
    step_rows step = {rows, positions, sequences, apart_sequences ? rows : 1, tables};
    tensor x = front(n->x, rows), normed = front(n->normed, rows), room = front(n->room, rows),
           attention = front(n->attention, rows);
    tensor qkv[] = {front(n->queries, rows), front(n->keys, rows), front(n->values, rows)};
    const weight *in[] = {n->q, n->k, n->v}, *pair[] = {n->gate, n->up};
    fake_cuda_forget();
    t->begin(b, &step);
    t->norm(b, normed, x, NORM_RMS, n->gain, NULL, 1e-5f);
    t->matmul(b, qkv, normed, in, NULL, 3);
    t->apply_rope(b, qkv[0], DIM, &turn, positions);
    t->apply_rope(b, qkv[1], DIM, &turn, positions);
    t->kv_write(b, n->kv, 0, qkv[1], qkv[2]);
    t->attention(b, attention, qkv[0], n->kv, &o);
    if (how == KEEPS_ONE) {
        int32_t last = rows - 1;
        t->gather(b, front(n->queries, 1), attention, &last);
        t->gather(b, front(n->kept, 1), x, &last);
        attention = front(n->queries, 1), x = front(n->kept, 1);
        rows = 1, normed = front(n->normed, 1), room = front(n->room, 1);
    }
    tensor both[] = {front(n->gates, rows), front(n->ups, rows)}, out = front(n->out, rows);
    if (how == APART) {
        t->matmul(b, &room, attention, (const weight *const *)&n->o, NULL, 1);
        t->add(b, x, x, room, 1);
        t->norm(b, normed, x, NORM_RMS, n->gain, NULL, 1e-5f);
        t->matmul(b, both, normed, pair, NULL, 2);
        t->gated(b, both[0], both[0], both[1], ACTIVATION_SILU);
    } else {
        t->matmul_add(b, x, room, attention, n->o, 1);
        t->norm(b, normed, x, NORM_RMS, n->gain, NULL, 1e-5f);
        t->gated_matmul(b, both[0], both[1], normed, pair, ACTIVATION_SILU);
    }
    t->matmul_add(b, x, room, both[0], n->down, 1);
    t->norm(b, normed, x, NORM_RMS, n->gain, NULL, 1e-5f);
    t->matmul(b, &out, normed, (const weight *const *)&n->q, NULL, 1);
    t->end(b);
    return fake_cuda_launches();
}

static void a_layer_is_five_launches_where_rows_are_few(void **state)
{
    (void)state;
    network n = open_network();
    static const int32_t rows[] = {1, 8, 16, 16, 1}; /* the same again, and others between */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(walk(&n, rows[i], 1, USUAL),
                            "clear norm product angles write_and_attention "
                            "product_norm product_gate product_norm product");
    assert_string_equal(walk(&n, 32, 1, USUAL), "clear norm product angles write_and_attention "
                                                "product_norm product gated product_norm product");
    close_network(&n);
}

static void with_more_rows_norms_are_launches_and_inputs_are_settled(void **state)
{
    (void)state;
    network n = open_network();
    assert_string_equal(walk(&n, 64, 1, USUAL),
                        "clear norm wide angles write_and_attention prepare wide "
                        "norm wide_gate settle wide norm wide");
    assert_string_equal(walk(&n, 200, 0, USUAL),
                        "clear norm wide angles turn_and_write attention_wide prepare wide "
                        "norm wide_gate settle wide norm wide");
    close_network(&n);
}

static void what_adapters_come_between_is_apart(void **state)
{
    (void)state;
    network n = open_network();
    assert_string_equal(walk(&n, 3, 1, APART), "clear norm product angles write_and_attention "
                                               "product norm product gated product_norm product");
    close_network(&n);
}

/* The last layer of a prompt's chunk: the stream's past goes with its rows. */
static void rows_that_are_kept_are_still_normed_by_products(void **state)
{
    (void)state;
    network n = open_network();
    assert_string_equal(walk(&n, 20, 0, KEEPS_ONE),
                        "clear norm product angles turn_and_write attention gather gather "
                        "prepare product_norm product_gate product_norm product");
    close_network(&n);
}

/* A norm that a product made has its floats when they are asked for, once, and not after its rows have changed. */
static void floats_of_a_norm_are_made_when_they_are_read(void **state)
{
    (void)state;
    network n = open_network();
    float floats[COLS];
    walk(&n, 1, 1, USUAL);
    fake_cuda_forget();
    n.t->read(n.b, floats, front(n.normed, 1));
    assert_string_equal(fake_cuda_launches(), "clear norm");
    n.t->read(n.b, floats, front(n.normed, 1));
    assert_string_equal(fake_cuda_launches(), "clear norm");
    walk(&n, 1, 1, USUAL);
    fake_cuda_forget();
    n.t->write(n.b, front(n.x, 1), floats);
    n.t->read(n.b, floats, front(n.normed, 1));
    assert_string_equal(fake_cuda_launches(), "");
    close_network(&n);
}

/* A product that adds is recorded before whatever else reads the stream. */
static void a_product_that_waits_comes_before_what_is_not_its_norm(void **state)
{
    (void)state;
    network n = open_network();
    int32_t positions[2] = {0, 0}, sequences[2] = {0, 1}, page = 0;
    const int32_t *tables[] = {&page, &page};
    step_rows step = {2, positions, sequences, 2, tables};
    tensor x = front(n.x, 2), other = front(n.kept, 2), normed = front(n.normed, 2);
    fake_cuda_forget();
    n.t->begin(n.b, &step);
    n.t->norm(n.b, normed, x, NORM_RMS, n.gain, NULL, 1e-5f);
    n.t->matmul_add(n.b, x, front(n.room, 2), normed, n.o, 1);
    n.t->soft_cap(n.b, other, 3);
    n.t->matmul_add(n.b, x, front(n.room, 2), normed, n.o, 1);
    n.t->norm(n.b, normed, x, NORM_LAYER, n.gain, n.gain, 1e-5f);
    n.t->matmul_add(n.b, x, front(n.room, 2), normed, n.o, 1);
    n.t->end(n.b);
    assert_string_equal(fake_cuda_launches(), "clear norm product add soft_cap product "
                                              "norm_of_heads product add");
    close_network(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_is_five_launches_where_rows_are_few),
        cmocka_unit_test(with_more_rows_norms_are_launches_and_inputs_are_settled),
        cmocka_unit_test(what_adapters_come_between_is_apart),
        cmocka_unit_test(rows_that_are_kept_are_still_normed_by_products),
        cmocka_unit_test(floats_of_a_norm_are_made_when_they_are_read),
        cmocka_unit_test(a_product_that_waits_comes_before_what_is_not_its_norm),
    };
    return cmocka_run_group_tests_name("cuda_launches", tests, NULL, NULL);
}
