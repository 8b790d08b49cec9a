"""Writes truth_NAME.json for a model file: what its weights say when nothing is rounded.

    python make_truth.py NAME MODEL.gguf      needs gguf, llama-cpp-python and numpy

For each prompt 24 tokens are generated greedily in double precision (network.py); kept are the
prompt's ids, those tokens and at each step the ten most probable ids with their log-probabilities.
llama.cpp is then led along the same tokens twice: on the file as it is, which gives the distance
that it has from the truth (a mean and a largest over the five most probable ids of each step),
and on the same weights written out as F32, which shows that the truth is one: SmolLM2's differ by
0.000002 on average. Gemma's by 0.0009, which is llama.cpp's GELU, a table of F16: the network here
differs from itself as much when its GELU is rounded so (0.0010), and by 0.0000025 in F32 without.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy

from network import Network

STEPS, KEPT, MEASURED = 24, 10, 5

LONG = "".join(f"Item {i}: the warehouse holds {i * 37 % 101} boxes of part number {i * 7919 % 1000}. "
               for i in range(30)) + "Item 30: the warehouse holds"

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "The three laws of thermodynamics state that",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "Q: Why is the sky blue?\nA:",
    "Le chat est assis sur le tapis et regarde",
    '{"name": "Alice", "age": 30, "city":',
    "\u4e2d\u56fd\u7684\u9996\u90fd\u662f",
    "In 1969, Neil Armstrong became the first person to walk on the Moon. He said:",
    "To make a good cup of tea, first boil the water. Then",
    LONG,
]


def as_f32(source, path):
    """The same model with every weight written out as F32."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=element)
    for t in reader.tensors:
        writer.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """llama.cpp led along given tokens."""

    def __init__(self, path, **options):
        self.model = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=512, n_threads=2, verbose=False,
                                     **options)

    def tokenize(self, text):
        return self.model.tokenize(text.encode(), add_bos=True, special=True)

    def follow(self, prompt, tokens):
        """Log-probabilities before each of tokens: [len(tokens), n_vocab]."""
        self.model.reset()
        rows = []
        for part in [prompt] + [[t] for t in tokens[:-1]]:
            self.model.eval(part)
            row = numpy.ctypeslib.as_array(self.model._ctx.get_logits(), shape=(self.model.n_vocab(),))
            row = row.astype(numpy.float64)
            rows.append(row - row.max() - numpy.log(numpy.exp(row - row.max()).sum()))
        return numpy.array(rows)


def follow_truth(network, prompt):
    network.reset()
    steps, tokens = [], []
    shares = network.feed(prompt)
    while True:
        order = numpy.argsort(-shares, kind="stable")[:KEPT]
        steps.append([[int(i), round(float(shares[i]), 6)] for i in order])
        tokens.append(int(order[0]))
        if len(tokens) == STEPS:
            return tokens, steps
        shares = network.feed(tokens[-1:])


def distances(llama, cases):
    found = []
    for case in cases:
        rows = llama.follow(case["prompt"], case["tokens"])
        for row, step in zip(rows, case["top"]):
            found += [abs(row[i] - share) for i, share in step[:MEASURED]]
    return {"mean": round(float(numpy.mean(found)), 6), "largest": round(float(numpy.max(found)), 6)}


def main(name, path):
    network = Network(path)
    llama = Llama(path)
    cases = []
    for text in PROMPTS:
        prompt = llama.tokenize(text)
        tokens, top = follow_truth(network, prompt)
        print(len(prompt), repr(text[-40:]), repr(llama.model.detokenize(tokens)), flush=True)
        cases.append({"prompt": prompt, "tokens": tokens, "top": top})
    network.tensors = None
    plain = distances(llama, cases)
    with tempfile.TemporaryDirectory() as folder:
        exact_path = Path(folder) / "f32.gguf"
        as_f32(path, exact_path)
        exact = distances(Llama(exact_path, type_k=0, type_v=0, flash_attn=False), cases)
    print("llama.cpp", plain, "on F32", exact)
    head = {"model": name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "llama_cpp": {"version": llama_cpp.__version__, "distance": plain, "distance_f32": exact}}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    text = json.dumps(head)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n"
    Path(__file__).with_name(f"truth_{name}.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
