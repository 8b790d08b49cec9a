"""Logits of tiny random models of every family are llama.cpp's.

logits/tiny_models.py makes the models, logits/tiny.json has what llama.cpp computed with keys and
values in F32. Realm keeps them as F16, which moves a logit by a few thousandths of the spread of
all logits; a wrong rotation, scale, cap, mask or order moves it by a good part of the spread.
"""

import json
import math
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "logits"
sys.path.insert(0, str(HERE))

import logits_tool  # noqa: E402
import tiny_models  # noqa: E402

EXPECTED = json.loads((HERE / "tiny.json").read_text())["logits"]

# Parts of the standard deviation of a model's logits. Measured: means up to 0.0008, largest 0.0052.
MEAN_BOUND, LARGEST_BOUND = 0.0015, 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_models.write_all(path)
    return path


def distance(got, expected):
    """Mean and largest difference in parts of the expected numbers' standard deviation."""
    flat = [v for row in expected for v in row]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((v - mean) ** 2 for v in flat) / len(flat))
    found = [abs(a - b) / spread for g, e in zip(got, expected) for a, b in zip(g, e)]
    return sum(found) / len(found), max(found)


@pytest.mark.parametrize("options", [[], ["--reference"]], ids=["fast", "reference"])
@pytest.mark.parametrize("name", EXPECTED)
def test_logits_are_llama_cpps(folder, name, options):
    model = tiny_models.ADAPTERS[name][0] if name in tiny_models.ADAPTERS else name
    if model != name:
        options = options + ["--adapter", str(folder / f"{name}.gguf")]
    context = tiny_models.FAMILIES[model].context
    got = logits_tool.logits(folder / f"{model}.gguf", tiny_models.PROMPT, tiny_models.POSITIONS,
                             ["--context", str(context), "--chunk", "32", *options])
    mean, largest = distance(got, EXPECTED[name])
    print(f"{name}: mean {mean:.6f}, largest {largest:.6f} of the spread")
    assert mean < MEAN_BOUND and largest < LARGEST_BOUND
