"""`realm bench` gives the rows that scripts read, and the sandbox costs next to nothing; models made on the
spot; matrix products beside the machine's limits."""
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest


def test_rows_have_the_promised_fields(run, smollm2):
    rows = run("bench", "--model", smollm2, "--pp", 64, "--tg", 8, "--batch", "1,3", "--sandbox", "--repeat", 1,
               "--json").json
    assert [(r["test"], r["batch"], r["sandbox"]) for r in rows] == [
        ("pp64", 1, False), ("tg8", 1, False), ("tg8", 1, True), ("tg8", 3, False), ("tg8", 3, True)]
    assert all(r["tokens_per_second"] > 0 for r in rows)


def test_a_guest_that_drives_every_token_costs_microseconds(run, smollm2):
    """The goal is 0.5 % of a step (docs/BENCHMARKS.md). Rates shake by more than that; the time of a step outside of
    the forward pass does so less, so it is what is held here, in the best repetition and in one round at the least:
    others may have the cores at any one moment, and what is broken is so always."""
    end = time.monotonic() + 240
    while True:
        rows = run("bench", "--model", smollm2, "--pp", 0, "--tg", 48, "--batch", "1,8", "--sandbox", "--repeat", 5,
                   "--json").json
        native = {row["batch"]: row for row in rows if not row["sandbox"]}
        guests = [row for row in rows if row["sandbox"]]
        cheap = all(row["outside_least_us"] - native[row["batch"]]["outside_least_us"] < 150 * row["batch"] + 350
                    for row in guests)
        together = all(row["steps"] <= 48 * 1.5 for row in guests)
        if cheap and together:
            break
        assert time.monotonic() < end, guests


def rows_of(run, *arguments):
    return run("bench", *arguments, "--json").json


def test_a_context_sweep_measures_prompts_and_generation_at_each_length(run):
    rows = rows_of(run, "--synthetic", "tiny", "--pp", 32, "--tg", 8, "--batch", "1,2", "--context", "0,100,256",
                   "--repeat", 2)
    assert [(r["test"], r["batch"], r["context"]) for r in rows] == [
        row for context in (0, 100, 256) for row in (("pp32", 1, context), ("tg8", 1, context), ("tg8", 2, context))]
    for row in rows:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert row["repetitions"] == 2 and row["model"] == "random tiny q4_k_m"


def test_a_context_is_really_there(run):
    """Its keys and values take memory: where there is room for 1,024 tokens, four sessions of 400 take turns."""
    rows = rows_of(run, "--synthetic", "tiny", "--pp", 0, "--tg", 16, "--batch", "2,4", "--context", 400, "--kv-memory", "1m",
                   "--repeat", 1)
    assert rows[1]["steps"] > rows[0]["steps"] + 4, rows


def test_guests_are_measured_with_a_context_too(run):
    rows = rows_of(run, "--synthetic", "tiny", "--pp", 0, "--tg", 8, "--batch", 2, "--context", 200, "--sandbox",
                   "--repeat", 2)
    assert [(r["context"], r["sandbox"]) for r in rows] == [(200, False), (200, True)]
    assert rows[1]["of_native"] > 0


def test_a_synthetic_model_leaves_nothing_behind_and_a_kept_one_is_a_model(run, tmp_path):
    cache = tmp_path / "cache"
    run("bench", "--synthetic", "tiny-qwen3:q5_k_m", "--pp", 8, "--tg", 4, "--repeat", 1, env={"REALM_CACHE": str(cache)})
    assert [p for p in cache.rglob("*") if p.is_file() and "program" not in str(p)] == []
    kept = tmp_path / "kept.gguf"
    make = ["bench", "--synthetic", "tiny-qwen3:q5_k_m", "--synthetic-out", kept, "--pp", 8, "--tg", 4, "--repeat", 1]
    run(*make)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["kept.gguf"]
    assert run("inspect", kept, "--json").json["architecture"] == "qwen3"
    assert run("bench", "--model", kept, "--pp", 8, "--tg", 4, "--repeat", 1, "--json").json
    again = run(*make, check=False)
    assert again.code == 1 and "is there already" in again.err


def test_the_seed_changes_the_weights_and_nothing_else_does(run, tmp_path):
    def make(name, *options):
        run("bench", "--synthetic", "tiny", "--synthetic-out", tmp_path / name, "--pp", 0, "--tg", 0, *options)
        return (tmp_path / name).read_bytes()
    assert make("a") == make("b", "--threads", 1) != make("c", "--seed", 2)


@pytest.mark.parametrize("number, keep", [(signal.SIGINT, False), (signal.SIGKILL, False), (signal.SIGINT, True),
                                          (signal.SIGTERM, True), (signal.SIGHUP, True)])
def test_an_interrupted_model_leaves_no_file(realm, tmp_path, number, keep):
    command = [str(realm), "bench", "--synthetic", "llama-3-8b:f32"]
    if keep:
        command += ["--synthetic-out", str(tmp_path / "kept.gguf")]

    def as_on_a_terminal():  # nohup and a shell's background jobs ignore signals, and so would the process
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen(command, env={**os.environ, "REALM_CACHE": str(tmp_path)}, stderr=subprocess.PIPE,
                               preexec_fn=as_on_a_terminal)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and written(process.pid, tmp_path) < 4 << 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
    finally:
        process.kill()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def written(pid, folder):
    """Bytes in the files of a folder that a process has open, named or not."""
    sizes = []
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith(str(folder)):
                sizes.append(descriptor.stat().st_size)
        except FileNotFoundError:
            pass
    return sum(sizes)


def test_a_model_that_the_disk_cannot_hold_is_refused_before_it_is_begun(run, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert free < 275e9, "this machine's disk holds the largest model there is"
    finished = run("bench", "--synthetic", "llama-2-70b:f32", "--cache-dir", tmp_path, check=False)
    assert finished.code == 1 and "llama-2-70b:f32 needs 275.9 GB" in finished.err and "GB free" in finished.err
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls_say_what_there_is(run, tmp_path):
    for code, said, arguments in [
        (2, "--model is missing, or --synthetic", []),
        (2, "exclude each other", ["--model", "a", "--synthetic", "tiny"]),
        (2, "--synthetic-out needs --synthetic", ["--model", "a", "--synthetic-out", "b"]),
        (2, "--context: '1,x' is not a list", ["--synthetic", "tiny", "--context", "1,x"]),
        (1, "there is no shape 'llama-9'; there are tiny, ", ["--synthetic", "llama-9"]),
        (1, "there is no quantization 'q9'; there are f32, ", ["--synthetic", "tiny:q9"]),
        (1, "context is 512 tokens, and the tests want up to 1090", ["--synthetic", "tiny", "--pp", "64", "--context", "1k"]),
        (1, "cannot make '/nowhere/x.gguf.", ["--synthetic", "tiny", "--synthetic-out", "/nowhere/x.gguf"]),
    ]:
        finished = run("bench", *arguments, check=False)
        assert finished.code == code and said in finished.err and finished.err.count("\n") == 1, finished.err
    text = run("bench", "--synthetic", "list").out
    assert "llama-2-7b         6738.4 M          4.08 GB" in text and " q4_k_m " in text


def test_kernels_are_measured_beside_the_machines_limits(run):
    found = run("bench", "kernels", "--type", "q4_k,F16", "--shape", "256x512", "--tokens", "1,9", "--threads", "1,2",
                "--ms", 5, "--json").json
    assert [l["threads"] for l in found["limits"]] == [1, 2]
    for limit in found["limits"]:
        assert all(limit[key] > 0.5 for key in ("read_gb_per_second", "int8_gop_per_second", "f32_gop_per_second"))
    assert [(p["type"], p["threads"], p["tokens"]) for p in found["products"]] == [
        (kind, threads, tokens) for kind in ("Q4_K", "F16") for threads in (1, 2) for tokens in (1, 9)]
    for product in found["products"]:
        assert product["gop_per_second"] > 0 and 0 < product["of_arithmetic"] < 1.5, product
        bytes_per_op = product["gb_per_second"] / product["gop_per_second"] * 2 * product["tokens"]
        assert 0.5 < bytes_per_op < 2.2, product  # bytes a weight: Q4_K's 0.56, F16's 2


def test_kernels_of_other_instructions_say_what_this_processor_has(run):
    found = run("bench", "kernels", "--isa", "scalar", "--type", "q8_0", "--shape", "64x256", "--tokens", 1, "--threads", 1,
                "--ms", 1, "--json").json
    assert found["isa"] == "scalar" and found["limits"][0]["int8_gop_per_second"] > 0
    for said, arguments in [("--isa: 'vax' is not among what this processor has: scalar", ["--isa", "vax"]),
                            ("--type: 'q9' is not a type of weights", ["--type", "q9"]),
                            ("--type: 100 columns are no whole blocks of Q4_0", ["--shape", "64x100"]),
                            ("--shape wants ROWSxCOLUMNS", ["--shape", "64"])]:
        finished = run("bench", "kernels", *arguments, check=False)
        assert finished.code == 2 and said in finished.err


def test_guests_that_call_generate_are_measured(run):
    rows = rows_of(run, "--synthetic", "tiny", "--pp", 0, "--tg", 24, "--batch", 2, "--sandbox", "--generate", "--repeat", 2)
    assert [(r["test"], r["sandbox"]) for r in rows] == [("tg24", False), ("tg24", True)]
    assert rows[1]["of_native"] > 0 and rows[1]["steps"] >= 24, rows
    assert "--generate needs --sandbox" in run("bench", "--synthetic", "tiny", "--generate", check=False).err
