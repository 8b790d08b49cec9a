/* compute/exp_parts.h: the exponential that sampling weighs tokens with, in the same bits on every device.
 *
 * For x <= 0, relative error below 2e-7: 2^n times a polynomial of degree 6 in the rest, the coefficients of
 * Cephes' expf. At EXP_LEAST and below the result is 0 instead of a subnormal. Each sum and product is
 * rounded by itself, in this order; a NaN gives 0:
 *
 *     shifted = x * EXP_LOG2E + EXP_ROUNDS     (1.5 * 2^23 rounds to whole)
 *     n = shifted - EXP_ROUNDS
 *     r = x - n * EXP_LN2_HIGH - n * EXP_LN2_LOW
 *     p = (((((EXP_P0 * r + EXP_P1) * r + EXP_P2) * r + EXP_P3) * r + EXP_P4) * r + EXP_P5
 *     exp(x) = (p * (r * r) + r + 1) * 2^n
 *
 * and 2^n is made of shifted's bits: less EXP_ROUNDS_BITS they are n.
 *
 * Sums over a row go by blocks of PEAK_COLS columns: column i of a block is added to lane i % EXP_LANES in
 * floats, from 0 on in order of i, then the lanes in doubles in order.
 *
 * Written for the processor in engine/logits_passes.inl and for CUDA in compute/cuda/rows.cu. */
#ifndef REALM_COMPUTE_EXP_PARTS_H
#define REALM_COMPUTE_EXP_PARTS_H

#define EXP_LANES       16
#define EXP_LEAST       -87.0f
#define EXP_LOG2E       1.44269504088896341f
#define EXP_ROUNDS      12582912.0f
#define EXP_ROUNDS_BITS 0x4b400000
#define EXP_LN2_HIGH    0.693359375f
#define EXP_LN2_LOW     -2.12194440e-4f
#define EXP_P0          1.9875691500e-4f
#define EXP_P1          1.3981999507e-3f
#define EXP_P2          8.3334519073e-3f
#define EXP_P3          4.1665795894e-2f
#define EXP_P4          1.6666665459e-1f
#define EXP_P5          5.0000001201e-1f

#endif
