"""Writes tiny.json: what llama.cpp computes for the tiny models.

    python make_tiny.py          needs llama-cpp-python and numpy

Keys and values are kept as F32 and flash attention is off, so that what is recorded has no
rounding but that of F32 arithmetic. Kept in the repository so that tests need neither package.
"""

import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy

import tiny_models


def logits_of(path, context, lora=None):
    # 0 is F32. n_batch below the prompt's length: the recorded values go through several steps.
    model = llama_cpp.Llama(str(path), n_ctx=context, n_batch=32, n_threads=2, logits_all=True,
                            type_k=0, type_v=0, flash_attn=False, verbose=False,
                            lora_path=None if lora is None else str(lora))
    model.eval(tiny_models.PROMPT)
    return numpy.array(model.scores[tiny_models.POSITIONS, :])


def main():
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tiny_models.write_all(folder)
        for name, family in tiny_models.FAMILIES.items():
            results[name] = logits_of(folder / f"{name}.gguf", family.context)
        for name, (model, *_) in tiny_models.ADAPTERS.items():
            context = tiny_models.FAMILIES[model].context
            results[name] = logits_of(folder / f"{model}.gguf", context, folder / f"{name}.gguf")
    rounded = {name: [[float(f"{v:.6g}") for v in row] for row in rows] for name, rows in results.items()}
    text = json.dumps({"llama_cpp": llama_cpp.__version__, "logits": rounded}, separators=(",", ":"))
    Path(__file__).with_name("tiny.json").write_text(text.replace("]],", "]],\n") + "\n")
    for name, rows in results.items():
        print(f"{name:24} spread {rows.std():.3f}, largest {abs(rows).max():.3f}")


if __name__ == "__main__":
    main()
