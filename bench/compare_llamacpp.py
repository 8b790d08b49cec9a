#!/usr/bin/env python3
"""Realm beside llama.cpp: the same model, the same threads, alternately in one run.

    pip install llama-cpp-python numpy
    bench/compare_llamacpp.py --model model.gguf --threads 2 --batch 1,4,8,16

Absolute figures drift with the machine; the ratio of runs that alternate does not. Each repetition
measures llama.cpp and then Realm; the table gives medians, the median of the ratios and their spread.
llama.cpp runs with flash attention and the batch sizes it is fastest with, through llama-cpp-python's
low-level interface in this process; Realm is `realm bench --json`.
"""
import argparse
import ctypes
import json
import statistics
import subprocess
import time

import llama_cpp as ll
import numpy as np


def quiet(level, text, data):
    pass


QUIET = ll.llama_log_callback(quiet)


class LlamaCpp:
    def __init__(self, path, threads, n_prompt, n_generate, largest_batch):
        ll.llama_log_set(QUIET, ctypes.c_void_p(0))
        ll.llama_backend_init()
        options = ll.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        context = ll.llama_context_default_params()
        context.n_ctx = max(n_prompt, (n_generate + 8) * largest_batch) + 64
        context.n_batch = 2048
        context.n_ubatch = 512
        context.n_seq_max = max(1, largest_batch)
        context.n_threads = context.n_threads_batch = threads
        if hasattr(context, "flash_attn_type"):
            context.flash_attn_type = 1
        if hasattr(context, "kv_unified"):
            context.kv_unified = True
        self.context = ll.llama_init_from_model(self.model, context)
        self.memory = ll.llama_get_memory(self.context)
        self.rng = np.random.default_rng(1)

    def _decode(self, tokens, positions, sequences, wanted):
        n = len(tokens)
        batch = ll.llama_batch_init(n, 0, 1)
        for i in range(n):
            batch.token[i] = int(tokens[i])
            batch.pos[i] = positions[i]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequences[i]
            batch.logits[i] = wanted[i]
        batch.n_tokens = n
        if ll.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        ll.llama_batch_free(batch)

    def prompt(self, n):
        ll.llama_memory_clear(self.memory, True)
        tokens = self.rng.integers(0, self.n_vocab, n)
        start = time.perf_counter()
        self._decode(tokens, range(n), [0] * n, [0] * (n - 1) + [1])
        ll.llama_get_logits_ith(self.context, -1)[0]
        return n / (time.perf_counter() - start)

    def generate(self, n, batch):
        """Greedy in name: tokens are random, as the arithmetic does not care, but logits are read."""
        ll.llama_memory_clear(self.memory, True)
        tokens = self.rng.integers(0, self.n_vocab, batch)
        self._decode(tokens, [0] * batch, range(batch), [1] * batch)
        start = time.perf_counter()
        for i in range(n):
            self._decode(tokens, [i + 1] * batch, range(batch), [1] * batch)
            for j in range(batch):
                ll.llama_get_logits_ith(self.context, j)[0]
        return n * batch / (time.perf_counter() - start)


def realm_rates(realm, model, threads, n_prompt, n_generate, batches):
    out = subprocess.run(
        [realm, "bench", "--model", model, "--threads", str(threads), "--pp", str(n_prompt), "--tg",
         str(n_generate), "--batch", ",".join(map(str, batches)), "--repeat", "1", "--json"],
        check=True, capture_output=True, text=True).stdout
    rates = {}
    for row in json.loads(out):
        rates["pp" if row["test"].startswith("pp") else row["batch"]] = row["tokens_per_second"]
    return rates


def main():
    args = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", required=True)
    args.add_argument("--realm", default="build/release/realm")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--pp", type=int, default=512)
    args.add_argument("--tg", type=int, default=64)
    args.add_argument("--batch", default="1")
    args.add_argument("--repeat", type=int, default=5)
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    batches = [int(b) for b in args.batch.split(",")]

    theirs = LlamaCpp(args.model, args.threads, args.pp, args.tg, max(batches))
    theirs.prompt(args.pp)
    keys = ["pp"] + batches
    rates = {key: ([], []) for key in keys}
    for _ in range(args.repeat):
        for key in keys:
            rates[key][0].append(theirs.prompt(args.pp) if key == "pp" else theirs.generate(args.tg, key))
        ours = realm_rates(args.realm, args.model, args.threads, args.pp, args.tg, batches)
        for key in keys:
            rates[key][1].append(ours[key])

    rows = []
    for key in keys:
        ratios = [b / a for a, b in zip(*rates[key])]
        rows.append({"test": f"pp{args.pp}" if key == "pp" else f"tg{args.tg}",
                     "batch": 1 if key == "pp" else key,
                     "llama_cpp": statistics.median(rates[key][0]),
                     "realm": statistics.median(rates[key][1]),
                     "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'test':8} {'batch':>5} {'llama.cpp':>10} {'realm':>10} {'ratio':>7}   spread")
    for row in rows:
        print(f"{row['test']:8} {row['batch']:5} {row['llama_cpp']:10.1f} {row['realm']:10.1f} "
              f"{row['ratio']:7.2f}   {row['least']:.2f} to {row['most']:.2f}")


if __name__ == "__main__":
    main()
