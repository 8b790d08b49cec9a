"""The models that `realm bench --synthetic` makes are models to others too.

synthetic/golden.json has what llama.cpp computes with these very files (their hashes say so) and which types its
own quantizer chooses (synthetic/make.py). The Python package `gguf` reads them here. Realm's logits are compared
with llama.cpp's: both round activations where weights are quantized, each in its way, so a bound in parts of the
logits' spread is what can be asked; a tensor in the wrong place moves them by the whole of it.
"""
import hashlib
import json
import math
import sys
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "logits"))

import logits_tool  # noqa: E402

GOLDEN = json.loads((HERE / "synthetic" / "golden.json").read_text())
LARGEST_BOUND = {"f32": 0.01, "f16": 0.02, "bf16": 0.05}
QUANTIZED_BOUND = 0.25


def synthesize(run, name, path):
    run("bench", "--synthetic", name, "--synthetic-out", path, "--pp", 0, "--tg", 0)


def spread(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


@pytest.mark.parametrize("name", GOLDEN["logits"])
def test_llama_cpp_computes_the_same_from_the_same_file(run, tmp_path, name):
    path = tmp_path / "model.gguf"
    synthesize(run, name, path)
    expected = GOLDEN["logits"][name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["sha256"]
    prompt = GOLDEN["prompt"]
    got, = logits_tool.logits(path, prompt, [len(prompt) - 1])
    theirs = expected["logits"]
    largest = max(abs(a - b) for a, b in zip(got, theirs)) / spread(theirs)
    print(f"{name}: {largest:.4f} of the spread")
    assert largest < LARGEST_BOUND.get(name.split(":")[1], QUANTIZED_BOUND)


@pytest.mark.parametrize("name", GOLDEN["types"])
def test_mixes_give_the_types_that_llama_cpp_gives(run, tmp_path, name):
    path = tmp_path / "model.gguf"
    synthesize(run, name, path)
    reader = gguf.GGUFReader(path)
    assert {t.name: t.tensor_type.name for t in reader.tensors if len(t.shape) > 1} == GOLDEN["types"][name]


# Not q8_1: the package has 40 bytes for its blocks, ggml and Realm have 36.
@pytest.mark.parametrize("name", ["tiny:q8_k", "tiny-phi3:q5_k_m", "tiny-gemma3:mxfp4"])
def test_the_reference_reads_what_inspect_shows(run, tmp_path, name):
    path = tmp_path / "model.gguf"
    synthesize(run, name, path)
    report = run("inspect", path, "--json").json
    reader = gguf.GGUFReader(path)
    theirs = {t.name: (t.tensor_type.name, [int(n) for n in t.shape], int(t.n_bytes)) for t in reader.tensors}
    assert {t["name"]: (t["type"], t["shape"], t["bytes"]) for t in report["tensors"]} == theirs
    assert report["parameters"] == sum(int(t.n_elements) for t in reader.tensors)
    assert reader.get_field("general.name").contents() == f"random {name.replace(':', ' ')}"
