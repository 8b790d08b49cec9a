"""Writes golden.json: what llama.cpp makes of the files that `realm bench --synthetic` writes.

    python make.py REALM          needs llama-cpp-python and numpy

Of each tiny model: the file's SHA-256 and llama.cpp's logits after a prompt. Of each mix: the types that
llama.cpp's own quantizer gives the tensors of such a model. Kept in the repository so that tests need neither
package.
"""
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy

PROMPT = [1, 300, 301, 40, 511, 7, 450]
LOGITS = 48  # of the first tokens
TINY = ["tiny", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3", "tiny-phi3"]
PLAIN = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
         "mxfp4", "q2_k_pure"]
MIXES = {"q2_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K, "q3_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
         "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M}


def synthesize(realm, name, path):
    subprocess.run([realm, "bench", "--synthetic", name, "--synthetic-out", path, "--pp", "0", "--tg", "0"], check=True,
                   stdout=subprocess.DEVNULL)


def logits_of(path):
    # 0 is F32: keys and values add no rounding of their own.
    model = llama_cpp.Llama(str(path), n_ctx=256, n_batch=32, n_threads=2, logits_all=True, type_k=0, type_v=0,
                            flash_attn=False, verbose=False)
    model.eval(PROMPT)
    return [float(f"{v:.5g}") for v in numpy.array(model.scores[len(PROMPT) - 1, :LOGITS])]


def quantized_types(source, target, kind):
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = kind
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options) == 0
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors if len(t.shape) > 1}


def main():
    realm = sys.argv[1]
    golden = {"llama_cpp": llama_cpp.__version__, "prompt": PROMPT, "logits": {}, "types": {}}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        names = [f"tiny:{q}" for q in [*PLAIN, *MIXES]] + [f"{s}:{q}" for s in TINY[1:] for q in ("f16", "q4_k_m")]
        for name in names:
            path = folder / "model.gguf"
            synthesize(realm, name, path)
            golden["logits"][name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "logits": logits_of(path)}
            path.unlink()
        for shape in [*TINY, "smol-135m"]:
            source = folder / "source.gguf"
            synthesize(realm, f"{shape}:f16", source)
            for mix, kind in MIXES.items():
                if shape == "smol-135m" and mix != "q4_k_m":
                    continue  # a hundred megabytes each
                golden["types"][f"{shape}:{mix}"] = quantized_types(source, folder / "quantized.gguf", kind)
            source.unlink()
    text = json.dumps(golden, separators=(",", ":"))
    pathlib.Path(__file__).with_name("golden.json").write_text(text.replace("},", "},\n") + "\n")


if __name__ == "__main__":
    main()
