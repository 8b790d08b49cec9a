/* base/dtype.h: the kinds of numbers a tensor can hold, as GGUF numbers them.
 *
 * One list serves the file reader, the backends and the listings. A row: name, number in the
 * file, elements a block, bytes a block. Source: the GGUF specification's ggml_type. */
#ifndef REALM_BASE_DTYPE_H
#define REALM_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                             \
    "Realm reads model files, packed weights and guests' memory as they lie: little-endian machines only"
#endif

#define DTYPE_MAP(X)                                                                               \
    X(F32, 0, 1, 4)                                                                                \
    X(F16, 1, 1, 2)                                                                                \
    X(Q4_0, 2, 32, 18)                                                                             \
    X(Q4_1, 3, 32, 20)                                                                             \
    X(Q5_0, 6, 32, 22)                                                                             \
    X(Q5_1, 7, 32, 24)                                                                             \
    X(Q8_0, 8, 32, 34)                                                                             \
    X(Q8_1, 9, 32, 36)                                                                             \
    X(Q2_K, 10, 256, 84)                                                                           \
    X(Q3_K, 11, 256, 110)                                                                          \
    X(Q4_K, 12, 256, 144)                                                                          \
    X(Q5_K, 13, 256, 176)                                                                          \
    X(Q6_K, 14, 256, 210)                                                                          \
    X(Q8_K, 15, 256, 292)                                                                          \
    X(IQ4_NL, 20, 32, 18)                                                                          \
    X(IQ4_XS, 23, 256, 136)                                                                        \
    X(I8, 24, 1, 1)                                                                                \
    X(I16, 25, 1, 2)                                                                               \
    X(I32, 26, 1, 4)                                                                               \
    X(I64, 27, 1, 8)                                                                               \
    X(F64, 28, 1, 8)                                                                               \
    X(BF16, 30, 1, 2)                                                                              \
    X(MXFP4, 39, 32, 17)

typedef enum dtype {
#define DTYPE_ENUM(name, number, elements, bytes) DTYPE_##name = number,
    DTYPE_MAP(DTYPE_ENUM)
#undef DTYPE_ENUM
} dtype;

/* "Q4_K", or NULL if number is no type in the list. */
const char *dtype_name(uint32_t number);

/* Elements and bytes of one block; 0 if number is no type in the list. */
uint32_t dtype_block_elements(uint32_t number);
uint32_t dtype_block_bytes(uint32_t number);

/* Bytes of one row of n elements; 0 if n is not a multiple of the block or the type is unknown. */
size_t dtype_row_bytes(uint32_t number, uint64_t n);

#endif
