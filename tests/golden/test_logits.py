"""On real models Realm is no farther from the truth than llama.cpp is.

logits/truth_NAME.json has the truth of twelve prompts, 24 greedy tokens each (the same weights in
double precision, see logits/make_truth.py), and llama.cpp's distance from it: a mean and a largest
over the log-probabilities of the five most probable ids of each step. Realm is led along the same
tokens and measured in the same way.

Another file of the same size and name would have another truth, so the models' hashes are checked.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "logits"
sys.path.insert(0, str(HERE))

import logits_tool  # noqa: E402

MODELS = ["smollm2", "gemma3"]  # fixtures of conftest.py


@pytest.fixture(scope="module")
def truths(request):
    """name -> the truth's file and the model's path."""
    found = {}

    def truth(name):
        if name not in found:
            path = request.getfixturevalue(name)
            content = json.loads((HERE / f"truth_{name}.json").read_text())
            with open(path, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == content["sha256"], path
            found[name] = content, path
        return found[name]

    return truth


def measure(truth, path, options):
    """Mean and largest distance from the truth."""
    return logits_tool.distance(logits_tool.shares(truth, path, options),
                                logits_tool.true_shares(truth))


@pytest.mark.parametrize("name", MODELS)
def test_realm_is_no_farther_from_the_truth_than_llama_cpp(truths, name):
    truth, path = truths(name)
    mean, largest = measure(truth, path, [])
    theirs = truth["llama_cpp"]["distance"]
    print(f"{name}: mean {mean:.6f} (llama.cpp {theirs['mean']}), largest {largest:.6f} "
          f"(llama.cpp {theirs['largest']})")
    assert mean <= theirs["mean"] and largest <= theirs["largest"]


@pytest.mark.parametrize("name", MODELS)
def test_without_quantized_activations_only_rounding_is_left(truths, name):
    """Keys and values are F16 and sums F32; nothing else may part Realm from the truth. Measured:
    means 0.0011 and 0.0007, largest 0.041 and 0.008."""
    mean, largest = measure(*truths(name), ["--exact"])
    print(f"{name}, exact: mean {mean:.6f}, largest {largest:.6f}")
    assert mean < 0.002 and largest < 0.1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instruction sets")
@pytest.mark.parametrize("options", [[], ["--exact"]], ids=["quantized", "exact"])
@pytest.mark.parametrize("name", MODELS)
def test_instruction_sets_agree_on_every_bit(truths, name, options):
    """AMX, AVX-512 and AVX-VNNI, where this processor has them, and AVX2: logits of some steps, printed in full."""
    truth, path = truths(name)
    case = truth["cases"][0]
    tokens = case["prompt"] + case["tokens"]
    lines = ["tokens " + " ".join(map(str, tokens))]
    lines += [f"logits {p}" for p in (0, len(tokens) // 2, len(tokens) - 1)]
    best = logits_tool.ask(path, lines, options)
    assert len(best) == 3 and len(best[0]) > 1000
    for lesser in ("avx512", "avx-vnni", "avx2"):
        assert best == logits_tool.ask(path, lines, options, {"REALM_CPU": lesser}), lesser
