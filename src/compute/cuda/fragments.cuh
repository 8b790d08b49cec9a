/* compute/cuda/fragments.cuh: packed tiles (packed.h) into what the matrix units multiply.
 *
 * raw<KIND> is a lane's part of a tile as loaded: load_raw asks for it, fragment turns a half tile (32
 * columns) into the operands of two instructions. A code becomes a half by being put into the mantissa
 * of 1024, from which 1024 is then taken: two instructions a pair where a conversion would be one of
 * the slow ones (the trick is that of Marlin, arXiv 2408.11743, and older). Scales are rounded to half
 * once, weights once more: 2^-11 each. */
#ifndef REALM_COMPUTE_CUDA_FRAGMENTS_CUH
#define REALM_COMPUTE_CUDA_FRAGMENTS_CUH

#include "compute/cuda/device.cuh"

template <int KIND> struct raw_words {
    static constexpr int planes = KIND == PACKED_F16  ? 16
                                  : KIND == PACKED_Q8 ? 8
                                  : KIND == PACKED_Q5 ? 5
                                  : KIND == PACKED_Q6 ? 6
                                  : KIND == PACKED_Q3 ? 3
                                  : KIND == PACKED_Q2 ? 2
                                                      : 4;
    static constexpr int scales = KIND == PACKED_F16                       ? 1
                                  : KIND == PACKED_Q8 || KIND == PACKED_T4 ? 2
                                  : KIND == PACKED_Q6 || KIND == PACKED_Q3 ? 3
                                  : KIND == PACKED_Q2                      ? 6
                                                                           : 4;
};

template <int KIND> struct raw {
    uint32_t q[raw_words<KIND>::planes];
    uint32_t s[raw_words<KIND>::scales];
};

/* Loads by the kind of address: a pointer into global memory, where weights pass through once and stay
 * out of the first-level cache, or the 32-bit address of shared memory. */
__device__ __forceinline__ uint4 load_16(const uint8_t *p)
{
    return __ldcs((const uint4 *)p);
}

__device__ __forceinline__ uint2 load_8(const uint8_t *p)
{
    return __ldg((const uint2 *)p);
}

__device__ __forceinline__ uint32_t load_4(const uint8_t *p)
{
    return __ldg((const uint32_t *)p);
}

__device__ __forceinline__ uint4 load_16(uint32_t at)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}

__device__ __forceinline__ uint2 load_8(uint32_t at)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}

__device__ __forceinline__ uint32_t load_4(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

template <int KIND> struct tile_bytes {
    static constexpr uint32_t planes = KIND == PACKED_F16  ? 2048
                                       : KIND == PACKED_Q8 ? 1024
                                       : KIND == PACKED_Q5 ? 640
                                       : KIND == PACKED_Q6 ? 768
                                       : KIND == PACKED_Q3 ? 384
                                       : KIND == PACKED_Q2 ? 256
                                                           : 512;
    /* The most of either form of scales. */
    static constexpr uint32_t scales = KIND == PACKED_F16 ? 0
                                       : KIND == PACKED_Q4 || KIND == PACKED_Q5 || KIND == PACKED_Q2
                                           ? 128
                                           : 64;
    static constexpr uint32_t supers = KIND == PACKED_Q4 || KIND == PACKED_Q5 || KIND == PACKED_Q2
                                           ? 64
                                       : KIND == PACKED_Q6 || KIND == PACKED_Q3 ? 32
                                                                                : 0;
};

/* A lane's part of a tile whose planes, scales and supers begin there, in either kind of memory. */
template <int KIND, typename ADDRESS>
__device__ __forceinline__ void load_parts(raw<KIND> &to, ADDRESS tile, ADDRESS scales,
                                           ADDRESS supers, int32_t k_scales, int lane)
{
    int g = lane / 4;
    if constexpr (KIND == PACKED_Q2 || KIND == PACKED_Q3) {
        uint2 v = load_8(tile + lane * 8);
        to.q[0] = v.x, to.q[1] = v.y;
        if constexpr (KIND == PACKED_Q3)
            to.q[2] = load_4(tile + 256 + lane * 4);
    } else {
        constexpr int vectors = KIND == PACKED_F16 ? 4 : KIND == PACKED_Q8 ? 2 : 1;
#pragma unroll
        for (int i = 0; i < vectors; i++) {
            uint4 v = load_16(tile + i * 512 + lane * 16);
            to.q[i * 4] = v.x, to.q[i * 4 + 1] = v.y, to.q[i * 4 + 2] = v.z, to.q[i * 4 + 3] = v.w;
        }
        if constexpr (KIND == PACKED_Q5)
            to.q[4] = load_4(tile + 512 + lane * 4);
        if constexpr (KIND == PACKED_Q6) {
            uint2 v = load_8(tile + 512 + lane * 8);
            to.q[4] = v.x, to.q[5] = v.y;
        }
    }
    if constexpr (KIND == PACKED_Q8 || KIND == PACKED_T4) {
        uint2 v = load_8(scales + g * 8);
        to.s[0] = v.x, to.s[1] = v.y;
    } else if constexpr (KIND == PACKED_Q6 || KIND == PACKED_Q3) {
        uint2 v = load_8(scales + g * 8);
        to.s[0] = v.x, to.s[1] = v.y;
        to.s[2] = load_4(supers + g * 4);
    } else if constexpr (KIND == PACKED_Q2) {
        uint4 v = load_16(scales + g * 16);
        uint2 d = load_8(supers + g * 8);
        to.s[0] = v.x, to.s[1] = v.y, to.s[2] = v.z, to.s[3] = v.w, to.s[4] = d.x, to.s[5] = d.y;
    } else if constexpr (KIND == PACKED_Q4 || KIND == PACKED_Q5) {
        if (k_scales) {
            uint2 v = load_8(scales + g * 8);
            uint2 d = load_8(supers + g * 8);
            to.s[0] = v.x, to.s[1] = v.y, to.s[2] = d.x, to.s[3] = d.y;
        } else {
            uint4 v = load_16(scales + g * 16);
            to.s[0] = v.x, to.s[1] = v.y, to.s[2] = v.z, to.s[3] = v.w;
        }
    }
}

/* ---- arithmetic on pairs of halves in a word --------------------------------------------------- */

__device__ __forceinline__ __half2 as_half2(uint32_t v)
{
    return *(__half2 *)&v;
}

__device__ __forceinline__ uint32_t as_word(__half2 v)
{
    return *(uint32_t *)&v;
}

#define HALVES_1024 0x64006400u /* (1024, 1024); a code below 1024 goes into the mantissa */

/* (v & mask) | more, in one instruction. */
__device__ __forceinline__ uint32_t and_or(uint32_t v, uint32_t mask, uint32_t more)
{
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "r"(mask), "r"(more));
    return out;
}

/* (scale, minimum) as two pairs of equal halves. */
struct scale_pair {
    __half2 scale, minimum;
};

__device__ __forceinline__ scale_pair spread(__half2 v)
{
    return {__low2half2(v), __high2half2(v)};
}

/* Bytes first and first+1 of v, as halves. */
__device__ __forceinline__ __half2 bytes_as_halves(uint32_t v, int first)
{
    uint32_t codes = __byte_perm(v, HALVES_1024, first == 0 ? 0x7170 : 0x7372);
    return __hsub2(as_half2(codes), as_half2(HALVES_1024));
}

/* Scales of row half r in half tile c; upper: the lane's columns are in the half's second 16. */
template <int KIND>
__device__ __forceinline__ scale_pair scales_of(const raw<KIND> &w, int r, int c, int upper,
                                                int32_t k_scales)
{
    if constexpr (KIND == PACKED_Q4 || KIND == PACKED_Q5) {
        if (!k_scales)
            return spread(as_half2(w.s[r * 2 + c]));
        return spread(__hmul2(bytes_as_halves(w.s[r], c * 2), as_half2(w.s[2 + r])));
    } else if constexpr (KIND == PACKED_Q2) {
        uint32_t v = upper ? w.s[r * 2 + c] >> 16 : w.s[r * 2 + c];
        return spread(__hmul2(bytes_as_halves(v, 0), as_half2(w.s[4 + r])));
    } else if constexpr (KIND == PACKED_Q6 || KIND == PACKED_Q3) {
        uint32_t code = w.s[r] >> (c * 16 + upper * 8) & 255;
        uint32_t both = code | code << 16 | HALVES_1024;
        __half2 scale = __hsub2(as_half2(both), __half2half2(__ushort_as_half(0x6480))); /* 1152 */
        __half2 d = r == 0 ? __low2half2(as_half2(w.s[2])) : __high2half2(as_half2(w.s[2]));
        return {__hmul2(scale, d), d};
    } else if constexpr (KIND == PACKED_Q8 || KIND == PACKED_T4) {
        __half2 v = as_half2(w.s[r]);
        v = c == 0 ? __low2half2(v) : __high2half2(v);
        return {v, v};
    } else {
        return {};
    }
}

/* Bytes of a table of sixteen by the four nibbles in the low half of v. */
__device__ __forceinline__ uint32_t look_up(uint32_t v, const uint32_t table[4])
{
    uint32_t places = v & 0x7777, low = __byte_perm(table[0], table[1], places);
    uint32_t high = __byte_perm(table[2], table[3], places);
    return __byte_perm(low, high, 0x3210 | (v & 0x8888) >> 1);
}

/* a[m]: the operand of instruction m: rows g and g+8 alternate, columns 4m, 4m+1 and then 4m+2, 4m+3
 * of the lane's eight. */
template <int KIND>
__device__ __forceinline__ void fragment(uint32_t a[2][4], const raw<KIND> &w, int c, int upper,
                                         int32_t k_scales, const uint32_t table[4])
{
    if constexpr (KIND == PACKED_F16) {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = w.q[(c * 2 + m) * 4 + i];
    } else {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            scale_pair s = scales_of<KIND>(w, r, c, upper, k_scales);
            if constexpr (KIND == PACKED_Q8 || KIND == PACKED_T4) {
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    uint32_t bytes;
                    if constexpr (KIND == PACKED_Q8)
                        bytes = w.q[c * 4 + r * 2 + m];
                    else
                        bytes = look_up(w.q[c * 2 + r] >> (m * 16), table);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        uint32_t codes = __byte_perm(bytes, HALVES_1024, e == 0 ? 0x7170 : 0x7372);
                        __half2 v = __hsub2(as_half2(codes),
                                            __half2half2(__ushort_as_half(0x6480)));
                        a[m][e * 2 + r] = as_word(__hmul2(v, s.scale));
                    }
                }
            } else {
#pragma unroll
                for (int p = 0; p < 4; p++) {
                    uint32_t codes;
                    __half2 v;
                    if constexpr (KIND == PACKED_Q4) {
                        /* Odd pairs stay sixteen times too large instead of being shifted. */
                        codes = w.q[c * 2 + r] >> (p / 2 * 8);
                        if (p % 2 == 0)
                            v = __hsub2(as_half2(and_or(codes, 0x000F000F, HALVES_1024)),
                                        as_half2(HALVES_1024));
                        else
                            v = __hfma2(as_half2(and_or(codes, 0x00F000F0, HALVES_1024)),
                                        __half2half2(__ushort_as_half(0x2C00)),  /* 1/16 */
                                        __half2half2(__ushort_as_half(0xD400))); /* -64 */
                        v = __hfma2(v, s.scale, s.minimum);
                    } else if constexpr (KIND == PACKED_Q5) {
                        int bit = (c * 2 + r) * 4 + p;
                        uint32_t high = bit < 4 ? w.q[4] << (4 - bit) : w.q[4] >> (bit - 4);
                        codes = and_or(w.q[c * 2 + r] >> (p * 4), 0x000F000F,
                                       and_or(high, 0x00100010, HALVES_1024));
                        v = __hfma2(__hsub2(as_half2(codes), as_half2(HALVES_1024)), s.scale,
                                    s.minimum);
                    } else if constexpr (KIND == PACKED_Q6) {
                        int bit = (c * 4 + p) * 2;
                        uint32_t high = bit < 4 ? w.q[4 + r] << (4 - bit) : w.q[4 + r] >> (bit - 4);
                        codes = and_or(w.q[c * 2 + r] >> (p * 4), 0x000F000F,
                                       and_or(high, 0x00300030, HALVES_1024));
                        v = __hmul2(
                            __hsub2(as_half2(codes), __half2half2(__ushort_as_half(0x6420))),
                            s.scale);
                    } else if constexpr (KIND == PACKED_Q3) {
                        int bit = (c * 2 + r) * 4 + p;
                        uint32_t high = bit < 2 ? w.q[2] << (2 - bit) : w.q[2] >> (bit - 2);
                        codes = and_or(w.q[r] >> ((c * 4 + p) * 2), 0x00030003,
                                       and_or(high, 0x00040004, HALVES_1024));
                        v = __hmul2(
                            __hsub2(as_half2(codes), __half2half2(__ushort_as_half(0x6404))),
                            s.scale);
                    } else {
                        codes = and_or(w.q[r] >> ((c * 4 + p) * 2), 0x00030003, HALVES_1024);
                        v = __hfma2(__hsub2(as_half2(codes), as_half2(HALVES_1024)), s.scale,
                                    s.minimum);
                    }
                    a[p / 2][p % 2 * 2 + r] = as_word(v);
                }
            }
        }
    }
}

/* The bytes that nibbles stand for, 128 added. */
__device__ __forceinline__ void load_table(uint32_t table[4], int32_t which)
{
    constexpr uint32_t iq4[4] = {0x3F2D1801, 0x766A5D4F, 0xA6998D81, 0xF1D9C5B5};
    constexpr uint32_t fp4[4] = {0x83828180, 0x8C888684, 0x7D7E7F80, 0x74787A7C};
#pragma unroll
    for (int i = 0; i < 4; i++)
        table[i] = which ? fp4[i] : iq4[i];
}

/* d += a x b on the matrix units: 16 rows of weights by 8 tokens over 16 columns. */
__device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
