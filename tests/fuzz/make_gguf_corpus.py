#!/usr/bin/env python3
"""Writes the seeds of fuzz_gguf.c to corpus/gguf. Run it after changing it, and commit what it writes.

Seeds are small, so that mutations hit fields and not padding, and together hold every type of value,
every number of dims, both versions and the fields that lead to other code (alignment, split)."""
import pathlib
import struct

STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def string(text):
    return struct.pack("<Q", len(text)) + text


def value(kind, content):
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack("<" + FORMATS[kind], content)


def gguf(pairs=(), tensors=(), version=3, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, content in pairs:
        head += string(key) + struct.pack("<I", kind) + value(kind, content)
    data = b""
    for name, dims, kind, size in tensors:
        data += bytes(-len(data) % alignment)
        head += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", kind, len(data))
        data += bytes(range(256))[:size].ljust(size, b"\x55")
    if tensors:
        head += bytes(-len(head) % alignment)
    return head + data


SEEDS = {
    "empty": gguf(),
    "scalars": gguf([(b"k%d" % kind, kind, 1) for kind in FORMATS] + [(b"s", STRING, b"text")]),
    "arrays": gguf([(b"a%d" % kind, ARRAY, (kind, [0, 1, 1])) for kind in FORMATS]),
    "strings": gguf([(b"tokenizer.ggml.tokens", ARRAY, (STRING, [b"a", b"", b"\xff\xfe", b"long" * 8])),
                     (b"none", ARRAY, (STRING, []))]),
    "tensors": gguf([(b"general.alignment", 4, 64)],
                    [(b"a", (4,), 0, 16), (b"b", (32, 2), 2, 36), (b"c", (256, 1, 1), 12, 144),
                     (b"d", (2, 2, 2, 2), 1, 32)], alignment=64),
    "version2": gguf([(b"general.architecture", STRING, b"llama")], [(b"w", (8, 2), 30, 32)], version=2),
    "alignment8": gguf([(b"general.alignment", 4, 8)], [(b"a", (3,), 24, 3), (b"b", (1,), 28, 8)], alignment=8),
    "split": gguf([(b"split.no", 2, 0), (b"split.count", 2, 2), (b"split.tensors.count", 5, 1)],
                  [(b"w", (1,), 0, 4)]),
    "nested": gguf([(b"n", ARRAY, (ARRAY, [(4, [1]), (4, [2])]))]),
}

folder = pathlib.Path(__file__).parent / "corpus" / "gguf"
folder.mkdir(parents=True, exist_ok=True)
for name, content in SEEDS.items():
    (folder / f"{name}.gguf").write_bytes(content)
