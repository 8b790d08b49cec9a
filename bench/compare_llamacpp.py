#!/usr/bin/env python3
"""Realm beside llama.cpp: the same models, the same threads, alternately in one run.

    bench/compare_llamacpp.sh model.gguf other.gguf --batch 1,4,8,16     makes the environment this needs

Absolute figures drift with the machine; the ratio of runs that alternate does not. Each repetition measures
llama.cpp and then Realm, test by test; the table gives medians, the median of the ratios and their spread.

A model gets --seconds in all, five minutes if nothing is said. Small ones need less; of large ones fewer
repetitions are made than asked for, at least one, and the sessions of a batch write fewer tokens, as many for
both (the test's name says how many). With --append a row goes to bench/history.csv as soon as it is measured,
and what is there already of the same commit, without changes in src, is not measured again: after an
interruption the same command goes on where it was.

What is the same for both: the file, the number of threads, flash attention, keys and values in F16, random
tokens, a warm-up of each test that is not counted, and that only computing is: Realm times itself inside
`realm bench --json`, so neither its start nor its loading is in a figure, and llama.cpp's batches are put
together before the clock starts. llama.cpp runs through llama-cpp-python's low-level interface in this process,
with the batch sizes it is fastest with; it idles while Realm runs.
"""
import argparse
import csv
import ctypes
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import llama_cpp as ll
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
HISTORY = ROOT / "bench" / "history.csv"
COLUMNS = ["date", "commit", "cpu", "threads", "model", "test", "batch", "context", "realm", "llama_cpp", "ratio",
           "least", "most", "repetitions", "llama_cpp_version"]


def quiet(level, text, data):
    pass


QUIET = ll.llama_log_callback(quiet)


class Batch:
    """Tokens for one llama_decode, put together once."""

    def __init__(self, tokens, positions, sequences, wanted):
        self.size = len(tokens)
        self.batch = ll.llama_batch_init(self.size, 0, 1)
        self.batch.n_tokens = self.size
        for i in range(self.size):
            self.batch.token[i] = int(tokens[i])
            self.batch.pos[i] = positions[i]
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequences[i]
            self.batch.logits[i] = wanted[i]

    def advance(self):
        for i in range(self.size):
            self.batch.pos[i] += 1

    def release(self):
        ll.llama_batch_free(self.batch)


class LlamaCpp:
    def __init__(self, path, threads, n_prompt, n_generate, largest_batch, largest_context):
        ll.llama_log_set(QUIET, ctypes.c_void_p(0))
        ll.llama_backend_init()
        options = ll.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        context = ll.llama_context_default_params()
        context.n_ctx = largest_context * largest_batch + max(n_prompt, (n_generate + 8) * largest_batch) + 64
        context.n_batch = 2048
        context.n_ubatch = 512
        context.n_seq_max = max(1, largest_batch)
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = 1
        context.kv_unified = True
        self.context = ll.llama_init_from_model(self.model, context)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {context.n_ctx} tokens for {path}")
        self.memory = ll.llama_get_memory(self.context)
        self.rng = np.random.default_rng(1)

    def close(self):
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def _decode(self, batch):
        if ll.llama_decode(self.context, batch.batch) != 0:
            sys.exit("llama_decode failed")

    def _fill(self, batch, context):
        """Empties the cache, then gives each of batch sequences context tokens."""
        ll.llama_memory_clear(self.memory, True)
        for sequence in range(batch):
            for start in range(0, context, 2048):
                n = min(2048, context - start)
                piece = Batch(self.rng.integers(0, self.n_vocab, n), range(start, start + n), [sequence] * n,
                              [0] * (n - 1) + [1])
                self._decode(piece)
                piece.release()

    def prompt(self, n, context):
        self._fill(1, context)
        pieces = []
        for start in range(0, n, 2048):
            m = min(2048, n - start)
            pieces.append(Batch(self.rng.integers(0, self.n_vocab, m), range(context + start, context + start + m),
                                [0] * m, [0] * (m - 1) + [int(start + m == n)]))
        begin = time.perf_counter()
        for piece in pieces:
            self._decode(piece)
        ll.llama_get_logits_ith(self.context, -1)[0]
        seconds = time.perf_counter() - begin
        for piece in pieces:
            piece.release()
        return n / seconds

    def generate(self, n, batch, context):
        """Greedy in name: tokens are random, as the arithmetic does not care, but logits are read."""
        self._fill(batch, max(context - 1, 0))
        step = Batch(self.rng.integers(0, self.n_vocab, batch), [max(context - 1, 0)] * batch, range(batch), [1] * batch)
        self._decode(step)
        begin = time.perf_counter()
        for _ in range(n):
            step.advance()
            self._decode(step)
            for j in range(batch):
                ll.llama_get_logits_ith(self.context, j)[0]
        seconds = time.perf_counter() - begin
        step.release()
        return n * batch / seconds


class Realm:
    def __init__(self, program, path, options):
        self.model = pathlib.Path(path).stem
        self.command = [str(program), "bench", "--model", path, "--device", "cpu", "--threads", str(options.threads),
                        "--repeat", "1", "--json", *options.realm_option]

    def _rate(self, *arguments):
        out = subprocess.run([*self.command, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout
        row, = json.loads(out)
        self.cpu = row["cpu"]
        return row["tokens_per_second"]

    def prompt(self, n, context):
        return self._rate("--pp", n, "--tg", 0, "--context", context)

    def generate(self, n, batch, context):
        return self._rate("--pp", 0, "--tg", n, "--batch", batch, "--context", context)


def tests_of(options):
    """(context, kind, tokens, batch) of each test of a model."""
    for context in options.context:
        if options.pp:
            yield context, "pp", options.pp, 1
        for batch in options.batch if options.tg else []:
            yield context, "tg", options.tg, batch


def run_once(engine, kind, n, batch, context):
    return engine.prompt(n, context) if kind == "pp" else engine.generate(n, batch, context)


def tokens_for(kind, n, batch, rate, seconds):
    """As many as a pair can be measured with in these seconds: Realm is about as fast and has a warm-up of its own."""
    if kind == "pp":
        return n
    return max(4, min(n, int(seconds * rate / batch / 3) // 4 * 4))


def measure(theirs, ours, test, options, seconds):
    """A row: pairs of both engines in turn, until there are options.repeat or the next would not fit."""
    context, kind, n, batch = test
    begin = time.monotonic()
    # Warm-ups, the second where there is time; Realm has its own.
    rate = run_once(theirs, kind, min(n, 64 if kind == "pp" else 4), batch, context)
    n = tokens_for(kind, n, batch, rate, seconds)
    if n * batch / rate < seconds / 3:
        run_once(theirs, kind, n, batch, context)
    pairs, longest = [], 0
    while len(pairs) < options.repeat and (not pairs or time.monotonic() - begin + longest <= seconds):
        started = time.monotonic()
        pairs.append((run_once(theirs, kind, n, batch, context), run_once(ours, kind, n, batch, context)))
        longest = max(longest, time.monotonic() - started)
    ratios = [b / a for a, b in pairs]
    return {"model": ours.model, "test": f"{kind}{n}", "batch": batch, "context": context,
            "llama_cpp": statistics.median(a for a, _ in pairs), "realm": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "threads": options.threads, "cpu": ours.cpu, "repetitions": len(pairs),
            "llama_cpp_version": ll.__version__, "pairs": pairs}


def compare(path, options, commit):
    """Rows for one model; those that the history has are left out."""
    model = pathlib.Path(path).stem
    tests = [test for test in tests_of(options) if not (options.append and is_measured(model, test, options, commit))]
    if not tests:
        return []
    end = time.monotonic() + options.seconds
    ours = Realm(options.realm, path, options)
    theirs = LlamaCpp(path, options.threads, options.pp, options.tg, max(options.batch), max(options.context))
    rows = []
    for i, test in enumerate(tests):
        rows.append(measure(theirs, ours, test, options, max(0, end - time.monotonic()) / (len(tests) - i)))
        if options.append:
            append(rows[-1], commit)
        if not options.json:
            show(rows[-1])
    theirs.close()
    return rows


def show(row):
    print(f"{row['model'][:28]:28} {row['test']:8} {row['batch']:5} {row['context']:7} {row['llama_cpp']:10.1f} "
          f"{row['realm']:10.1f} {row['ratio']:7.2f}   {row['least']:.2f} to {row['most']:.2f}", flush=True)


def commit_now():
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    changed = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "src"]).returncode
    return commit + "+" * changed


def is_measured(model, test, options, commit):
    """Whether the history has the test of this commit. Changes that are not committed are another program each time."""
    context, kind, _, batch = test
    if commit.endswith("+") or not HISTORY.exists():
        return False
    wanted = {"commit": commit, "model": model, "batch": str(batch), "context": str(context),
              "threads": str(options.threads)}
    with open(HISTORY, newline="") as file:
        return any(row["test"].startswith(kind) and wanted.items() <= row.items() for row in csv.DictReader(file))


def append(row, commit):
    new = not HISTORY.exists()
    with open(HISTORY, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({**row, "date": datetime.date.today().isoformat(), "commit": commit,
                         **{key: f"{row[key]:.4g}" for key in ("realm", "llama_cpp", "ratio", "least", "most")}})


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("models", nargs="+", metavar="MODEL.gguf")
    args.add_argument("--realm", default=ROOT / "build/release/realm")
    args.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args.add_argument("--pp", type=int, default=512)
    args.add_argument("--tg", type=int, default=64)
    args.add_argument("--batch", type=numbers, default=[1, 4, 8, 16])
    args.add_argument("--context", type=numbers, default=[0])
    args.add_argument("--repeat", type=int, default=5)
    args.add_argument("--seconds", type=float, default=300, help="for each model")
    args.add_argument("--realm-option", action="append", default=[], help="handed on to realm bench, such as --map-weights")
    args.add_argument("--json", action="store_true")
    args.add_argument("--append", action="store_true", help="add the rows to bench/history.csv")
    options = args.parse_args()

    if not options.json:
        print(f"{'model':28} {'test':8} {'batch':>5} {'context':>7} {'llama.cpp':>10} {'realm':>10} {'ratio':>7}   spread")
    commit = commit_now()
    rows = [row for path in options.models for row in compare(path, options, commit)]
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
