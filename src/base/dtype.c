/* base/dtype.c: see dtype.h. */
#include "base/dtype.h"

typedef struct row {
    const char *name;
    uint32_t elements, bytes;
} row;

static const row rows[] = {
#define ROW(name, number, elements, bytes) [number] = {#name, elements, bytes},
    DTYPE_MAP(ROW)
#undef ROW
};

static const row *find(uint32_t number)
{
    static const row none = {0};
    return number < sizeof rows / sizeof *rows ? &rows[number] : &none;
}

const char *dtype_name(uint32_t number)
{
    return find(number)->name;
}

uint32_t dtype_block_elements(uint32_t number)
{
    return find(number)->elements;
}

uint32_t dtype_block_bytes(uint32_t number)
{
    return find(number)->bytes;
}

size_t dtype_row_bytes(uint32_t number, uint64_t n)
{
    const row *r = find(number);
    if (!r->elements || n % r->elements || n / r->elements > SIZE_MAX / r->bytes)
        return 0;
    return (size_t)(n / r->elements) * r->bytes;
}
