#!/usr/bin/env python3
"""Writes the golden files of this folder with llama.cpp:

    make.py MODEL.gguf...        (needs pip's llama-cpp-python; the version is written into each file)

For each model NAME.json holds: the ids of every text of texts.HARD with special tokens added and parsed (texts
of more than 400 ids by their digest), digests of the same texts as plain text, and digests of the random texts,
both ways. Golden files change only when the texts do or when llama.cpp's ids do."""
import ctypes
import json
import os
import pathlib
import sys

import llama_cpp
from llama_cpp import llama_cpp as c

import texts
from digest import digest

HERE = pathlib.Path(__file__).parent


@c.llama_log_callback
def silence(level, text, user):
    pass


def open_vocabulary(path):
    parameters = c.llama_model_default_params()
    parameters.vocab_only = True
    model = c.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        sys.exit(f"{path}: llama.cpp cannot open it")
    return c.llama_model_get_vocab(model)


def encode(vocabulary, text, special):
    size = 2 * len(text) + 16
    ids = (c.llama_token * size)()
    count = c.llama_tokenize(vocabulary, text, len(text), ids, size, special, special)
    assert count >= 0, text
    return list(ids[:count])


def compact(ids):
    return ids if len(ids) <= 400 else digest(ids)


def name_of(path):
    stem = pathlib.Path(path).stem.lower().removeprefix("ggml-vocab-")
    return "smollm2" if stem.startswith("smollm2") else "gemma3" if stem.startswith("gemma-3") or stem == "gemma3" else stem


def main():
    c.llama_log_set(silence, ctypes.c_void_p(0))
    random = texts.random_texts()
    for path in sys.argv[1:]:
        vocabulary = open_vocabulary(path)
        golden = {
            "made_by": f"llama-cpp-python {llama_cpp.__version__}",
            "hard": [compact(encode(vocabulary, text, True)) for text in texts.HARD],
            "hard_plain": [digest(encode(vocabulary, text, False)) for text in texts.HARD],
            "random": [digest(encode(vocabulary, text, True)) for text in random],
            "random_plain": [digest(encode(vocabulary, text, False)) for text in random],
        }
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in golden.items())
        (HERE / f"{name_of(path)}.json").write_text("{\n" + lines + "\n}\n")
        print(name_of(path), vocabulary and "done")


if __name__ == "__main__":
    main()
