"""Makes quants_golden.bin, what quants_test.c compares quants.c with.

    python3 make_quants_golden.py            (needs numpy and gguf from PyPI)

Blocks are random bytes with finite scales; what they mean is computed by the package's own numpy
code, or here in a line of numpy for the two types it does not have (Q8_1 and Q8_K). Records, all
little-endian: u32 type, u32 elements, u32 bytes, then the blocks, then the F32 values; the last
record, of type 0xFFFFFFFF, has F32 values first (as "blocks") and their Q8_0 blocks after.
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

ELEMENTS = 512
rng = np.random.default_rng(20240229)


def halves(count):
    """Finite halves of every size, subnormal ones and zero among them."""
    bits = rng.integers(0, 0x7C00, count, dtype=np.uint16)
    bits[0] = 0x0001
    bits |= rng.integers(0, 2, count, dtype=np.uint16) << 15
    return bits.view(np.uint8).reshape(count, 2)


# type: elements a block, bytes a block, where its halves begin
BLOCKS = {
    T.Q4_0: (32, 18, [0]), T.Q4_1: (32, 20, [0, 2]), T.Q5_0: (32, 22, [0]),
    T.Q5_1: (32, 24, [0, 2]), T.Q8_0: (32, 34, [0]), T.Q8_1: (32, 36, [0, 2]),
    T.Q2_K: (256, 84, [80, 82]), T.Q3_K: (256, 110, [108]), T.Q4_K: (256, 144, [0, 2]),
    T.Q5_K: (256, 176, [0, 2]), T.Q6_K: (256, 210, [208]), T.Q8_K: (256, 292, []),
    T.IQ4_NL: (32, 18, [0]), T.IQ4_XS: (256, 136, [0]), T.MXFP4: (32, 17, []),
    T.F16: (1, 2, [0]), T.BF16: (1, 2, []),
}


def values_of(kind, blocks):
    if kind == T.Q8_1:
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return blocks[:, 4:].view(np.int8).astype(np.float32) * scale
    if kind == T.Q8_K:
        scale = blocks[:, :4].copy().view(np.float32)
        return blocks[:, 4:260].view(np.int8).astype(np.float32) * scale
    if kind == T.F16:
        return blocks.view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        return quants.dequantize(blocks, kind)


def record(kind, elements, first, second):
    return struct.pack("<III", kind, elements, len(first)) + first + second


out = b""
for kind, (size, width, scales) in BLOCKS.items():
    count = ELEMENTS // size
    blocks = rng.integers(0, 256, (count, width), dtype=np.uint8)
    for at in scales:
        blocks[:, at:at + 2] = halves(count)
    if kind == T.Q8_K:
        blocks[:, :4] = rng.normal(0, 1, (count, 1)).astype(np.float32).view(np.uint8)
    if kind == T.MXFP4:
        blocks[:2, 0] = [0, 1]
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)
    if kind == T.BF16:
        blocks[:, 1] &= 0xBF
    values = np.ascontiguousarray(values_of(kind, blocks), np.float32)
    assert values.size == ELEMENTS and np.isfinite(values).all(), kind
    out += record(int(kind), ELEMENTS, blocks.tobytes(), values.tobytes())

x = rng.normal(0, 1, (ELEMENTS // 32, 32)).astype(np.float32)
x *= 10.0 ** rng.uniform(-4, 3, (ELEMENTS // 32, 1)).astype(np.float32)
x[3] = 0
x = x.astype(np.float32)
packed = quants.quantize(x.reshape(1, -1), T.Q8_0)
out += record(0xFFFFFFFF, ELEMENTS, x.tobytes(), packed.tobytes())

path = pathlib.Path(__file__).with_name("quants_golden.bin")
path.write_bytes(out)
print(path.name, len(out), "bytes")
