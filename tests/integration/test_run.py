"""`realm run` as a user meets it: a real model, the built-in programs, programs of one's own."""
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FRANCE = "The capital of France is"

ECHO = """(module
  (import "realm" "request_read" (func $read (param i32 i32 i32) (result i32)))
  (import "realm" "respond_text" (func $say (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (call $say (i32.const 0) (call $read (i32.const 0) (i32.const 0) (i32.const 60000)))))
"""

RANDOM = """(module
  (import "realm" "random" (func $random (result i64)))
  (import "realm" "respond_text" (func $say (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (local $i i32)
    (loop $next
      (i64.store (local.get $i) (i64.and (call $random) (i64.const 0x0f0f0f0f0f0f0f0f)))
      (i64.store (local.get $i) (i64.add (i64.load (local.get $i)) (i64.const 0x4040404040404040)))
      (local.set $i (i32.add (local.get $i) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 64))))
    (call $say (i32.const 0) (i32.const 64))))
"""


def example(name, *arguments, realm):
    return subprocess.run([EXAMPLES / name / "run.sh", *map(str, arguments)], capture_output=True,
                          text=True, timeout=300, env={**os.environ, "REALM_BUILD": str(realm.parent)})


def test_the_capital_of_france_is_paris(smollm2, realm):
    done = example("paris-generation", smollm2, realm=realm)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and done.stdout.rstrip().endswith("SUCCESS")


def test_gemma_knows_paris_too(run, gemma3):
    # The file is of the base model and brings no chat template: it goes on with a text.
    out = run("run", "--model", gemma3, "--prompt", "Berlin is the capital of Germany. Paris is the capital of",
              "--max-tokens", 4).out
    assert "France" in out


def test_a_model_without_a_template_says_so(run, gemma3):
    done = run("run", "--model", gemma3, "--chat", "--prompt", "x", check=False)
    assert done.code == 1 and "chat template" in done.err


def test_json_has_every_field_that_is_promised(run, smollm2):
    answer = run("run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 8, "--logprobs", 3,
                 "--json").json
    assert len(answer["tokens"]) == 8 and answer["finish_reason"] == "length"
    assert all(isinstance(i, int) for i in answer["prompt_tokens"])
    assert "".join(t["text"] for t in answer["tokens"]) == answer["text"]
    for token in answer["tokens"]:
        assert len(token["top"]) == 3
        values = [t["logprob"] for t in token["top"]]
        assert values == sorted(values, reverse=True)
        # Greedy: the token is the likeliest one.
        assert token["id"] == token["top"][0]["id"]
        assert math.isclose(token["logprob"], values[0], abs_tol=1e-5)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
    assert answer["timings"]["sandbox_start_us"] > 0


def test_text_and_json_say_the_same(run, smollm2):
    arguments = ["run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 12]
    assert run(*arguments).out.rstrip("\n") == run(*arguments, "--json").json["text"].rstrip("\n")


def test_a_prompt_on_standard_input_is_read(run, smollm2):
    arguments = ["run", "--model", smollm2, "--max-tokens", 8]
    assert run(*arguments, stdin=FRANCE.encode()).out == run(*arguments, "--prompt", FRANCE).out


def test_a_conversation_remembers_what_was_said(run, smollm2):
    lines = b"My name is Ada.\nWhat is my name?\n"
    out = run("run", "--model", smollm2, "--chat", "--max-tokens", 24, "--json", stdin=lines).out
    first, second = map(json.loads, out.splitlines())
    assert len(second["prompt_tokens"]) > len(first["prompt_tokens"])
    assert second["prompt_tokens"][:4] == first["prompt_tokens"][:4]


@pytest.mark.parametrize("stop", [" of", "\n", "France"])
def test_nothing_of_a_stop_text_is_emitted(run, smollm2, stop):
    free = run("run", "--model", smollm2, "--prompt", "Paris is the capital", "--max-tokens", 32, "--json").json
    if stop not in free["text"]:
        pytest.skip("the model does not say it")
    held = run("run", "--model", smollm2, "--prompt", "Paris is the capital", "--max-tokens", 32, "--stop",
               stop, "--json").json
    assert held["text"] == free["text"].split(stop)[0]
    assert held["finish_reason"] == "stop"


def test_the_same_seed_gives_the_same_bytes(run, smollm2):
    def once(seed):
        answer = run("run", "--model", smollm2, "--prompt", "Once upon a time", "--temperature", 1.1,
                     "--top-p", 0.95, "--seed", seed, "--max-tokens", 32, "--logprobs", 2, "--json").json
        del answer["timings"]
        return answer

    assert once(7) == once(7)
    assert once(7)["text"] != once(8)["text"]


def test_threads_do_not_change_a_bit(run, smollm2):
    def once(threads):
        answer = run("run", "--model", smollm2, "--prompt", "Once upon a time " * 20, "--threads", threads,
                     "--max-tokens", 16, "--logprobs", 5, "--json").json
        return answer["tokens"]

    assert once(1) == once(2) == once(3)


def test_a_seed_replays_a_program_of_ones_own(run, smollm2, tmp_path):
    program = tmp_path / "random.wat"
    program.write_text(RANDOM)
    arguments = ["run", "--model", smollm2, "--program", program, "--prompt", "x"]
    first = run(*arguments, "--seed", 1).out
    assert len(first.rstrip("\n")) == 64
    assert first == run(*arguments, "--seed", 1).out != run(*arguments, "--seed", 2).out


def test_the_request_reaches_the_program_as_json(run, smollm2, tmp_path):
    program = tmp_path / "echo.wat"
    program.write_text(ECHO)
    request = json.loads(run("run", "--model", smollm2, "--program", program, "--prompt", 'say "ü"\n',
                             "--max-tokens", 5, "--temperature", 0.5, "--top-k", 3, "--seed", 9).out)
    assert request["prompt"] == 'say "ü"\n' and request["max_tokens"] == 5
    assert request["temperature"] == 0.5 and request["top_k"] == 3 and request["seed"] == 9


def test_a_schema_holds_the_model_to_json(run, smollm2):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
                                               "big": {"type": "boolean"}},
              "required": ["city", "big"], "additionalProperties": False}
    out = run("run", "--model", smollm2, "--prompt", "Paris as JSON: ", "--schema", json.dumps(schema),
              "--max-tokens", 64).out
    answer = json.loads(out)
    assert set(answer) == {"city", "big"} and isinstance(answer["big"], bool)


@pytest.mark.parametrize("arguments, words", [
    (["--prompt", "x"], "--model"),
    (["--model", "m.gguf", "--temprature", "1"], "--temperature"),
    (["--model", "m.gguf", "--temperature", "hot"], "temperature"),
    (["--model", "m.gguf", "--max-tokens", "0"], "max-tokens"),
])
def test_wrong_usage_exits_with_2_and_says_what(run, arguments, words):
    done = run("run", *arguments, check=False)
    assert done.code == 2 and words in done.err and done.out == ""


def test_a_missing_model_is_one_clear_sentence(run):
    done = run("run", "--model", "/nowhere/model.gguf", "--prompt", "x", check=False)
    assert done.code == 1 and "/nowhere/model.gguf" in done.err and len(done.err.splitlines()) == 1


def test_a_truncated_model_is_refused(run, smollm2, tmp_path):
    whole = smollm2.read_bytes()
    for size in (0, 3, 24, 1000, len(whole) // 2, len(whole) - 1):
        damaged = tmp_path / f"cut-{size}.gguf"
        damaged.write_bytes(whole[:size])
        done = run("run", "--model", damaged, "--prompt", "x", check=False)
        assert done.code == 1 and str(damaged.name) in done.err, (size, done.err)


@pytest.mark.parametrize("text, words", [
    ("(module)", "memory"),
    ("not a module", ""),
    ('(module (import "env" "f" (func)) (memory (export "memory") 1))', "env"),
    ('(module (import "realm" "no_such" (func)) (memory (export "memory") 1))', "no_such"),
    ('(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'
     ' (memory (export "memory") 1))', "wasi_snapshot_preview1"),
])
def test_what_is_no_program_of_ours_is_refused(run, smollm2, tmp_path, text, words):
    program = tmp_path / "program.wat"
    program.write_text(text)
    done = run("run", "--model", smollm2, "--program", program, "--prompt", "x", check=False)
    assert done.code == 1 and words in done.err


def test_interrupting_ends_quickly_with_130(realm, smollm2):
    process = subprocess.Popen([realm, "run", "--model", smollm2, "--prompt", "Once", "--max-tokens", "100000",
                                "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(20)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130 and time.monotonic() - start < 40, "before the context is full"


@pytest.mark.parametrize("language", ["c", "rust"])
def test_a_new_project_builds_and_runs_at_once(run, smollm2, tmp_path, language):
    folder = tmp_path / "mine"
    run("init", folder, "--lang", language)
    built = subprocess.run([folder / "build.sh"], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    out = run("run", "--model", smollm2, "--program", folder / "program.wasm", "--prompt", FRANCE,
              "--max-tokens", 8).out
    assert "Paris" in out
    again = run("init", folder, "--lang", language, check=False)
    assert again.code == 1 and "exists" in again.err


def test_the_examples_do_what_they_say(smollm2, realm):
    done = example("layer-by-layer", smollm2, realm=realm)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("SUCCESS"), done.stdout + done.stderr
    done = example("simple-realm-test", smollm2, realm=realm)
    assert done.returncode == 0 and "Paris" in done.stdout, done.stderr
    done = example("memory64-weights", smollm2, realm=realm)
    assert done.returncode == 0, done.stderr
    total = re.search(r"mapped (\d+) tensors of (\d+) layers, (\d+) bytes, byte sum (\d+)", done.stdout)
    assert total
    assert tuple(map(int, total.groups())) == layer_bytes(smollm2)


def layer_bytes(path):
    """What memory64-weights must find: from the outside, with the reference reader."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    tensors = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.")]
    total = sum(int(numpy.asarray(t.data).view(numpy.uint8).sum(dtype=numpy.uint64)) for t in tensors)
    layers = {t.name.split(".")[1] for t in tensors}
    return len(tensors), len(layers), sum(int(t.n_bytes) for t in tensors), total


def test_three_tenants_share_one_copy_of_the_weights(smollm2, realm):
    done = example("multi-tenant", smollm2, realm=realm)
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"poet +(.*)\nclerk +(.*)\nconcierge +(.*)\n\nmodel file ([\d.]+) MB; resident: ([\d.]+) MB.*\n",
                        done.stdout, re.DOTALL)
    assert said, done.stdout
    record = json.loads(said[2])
    assert set(record) == {"city", "river", "capital"} and record["river"] in ("Seine", "Thames", "Tiber")
    assert said[1].strip() and "guest number 1" in said[3]
    # One copy, whatever else the process needs: far from three.
    assert float(said[5]) < 2 * float(said[4]) + 64


def test_top_p_0_is_the_likeliest_alone(run, smollm2):
    arguments = ["run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 8]
    assert run(*arguments, "--temperature", 2, "--top-p", 0, "--seed", 3).out == run(*arguments).out


def test_log_probabilities_are_of_the_untempered_model(run, smollm2):
    def first(*flags):
        return run("run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 1, "--logprobs", 20, "--json",
                   *flags).json["tokens"][0]["top"]

    plain = first()
    assert first("--temperature", 3, "--top-k", 2, "--seed", 1) == plain
    assert first("--repetition-penalty", 5, "--presence-penalty", 3) == plain


def test_halves_of_characters_wait_for_their_other_half(run, smollm2):
    llamas = "Repeat: 🦙🦄🐉🦙🦄🐉🦙🦄🐉🦙🦄"
    answer = run("run", "--model", smollm2, "--prompt", llamas, "--max-tokens", 18, "--json").json
    texts = [t["text"] for t in answer["tokens"]]
    assert "" in texts and "".join(texts) == answer["text"]
    assert "\ufffd" not in answer["text"].rstrip("\ufffd")


def test_a_prompt_past_the_context_is_told_by_its_numbers(run, smollm2):
    done = run("run", "--model", smollm2, "--max-tokens", 1, stdin=b"word " * 9000, check=False)
    assert done.code == 1 and "9001 tokens" in done.err and "8192" in done.err


def test_no_home_means_no_cache_and_no_more(realm, smollm2):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "REALM_CACHE")}
    done = subprocess.run([realm, "run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", "1"], env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout == " Paris\n" and "not cached" in done.stderr


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_cache_entry_is_compiled_anew(run, smollm2, tmp_path, damage):
    arguments = ["run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 1]
    environment = {"REALM_CACHE": str(tmp_path)}
    expected = run(*arguments, env=environment).out
    entry, = (tmp_path / "programs").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes({"cut": whole[:1000], "empty": b"",
                       "changed": whole[:30000] + bytes([whole[30000] ^ 1]) + whole[30001:]}[damage])
    done = run(*arguments, env=environment)
    assert done.out == expected and "damaged" in done.err
    assert entry.read_bytes() == whole
    assert run(*arguments, env=environment).err == ""


def test_packed_weights_are_kept_and_give_the_same_bits(run, smollm2, tmp_path):
    """Packed at the first start; read, or mapped, at the next: text and log-probabilities are the same to the last
    bit, and nothing is written again."""
    arguments = ["run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 24, "--seed", 1, "--json", "--logprobs", 5]
    environment = {"REALM_LOG": "info"}
    at = ["--cache-dir", tmp_path / "cache"]

    def answer(*more):
        done = run(*arguments, *more, env=environment)
        said = [line for line in done.err.splitlines() if "weights:" in line]
        return done.json["tokens"], said

    plain, said = answer(*at, "--no-weight-cache")
    assert said == [] and not (tmp_path / "cache" / "weights").exists()
    packed, said = answer(*at)
    assert len(said) == 1 and "packed and kept in" in said[0]
    kept, = (tmp_path / "cache" / "weights").iterdir()
    before = kept.stat()
    read, said = answer(*at)
    assert len(said) == 1 and "of packed weights from" in said[0]
    mapped, said = answer(*at, "--map-weights")
    assert len(said) == 1 and "of packed weights from" in said[0]
    assert plain == packed == read == mapped
    after = kept.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)

    # One bit of the data, which no start before has damaged: found, told, made anew.
    whole = bytearray(kept.read_bytes())
    whole[len(whole) // 2] ^= 4
    kept.write_bytes(whole)
    damaged, said = answer(*at)
    assert "damaged" in said[0] and "packed and kept in" in said[1] and damaged == plain
    assert answer(*at, "--map-weights")[0] == plain


def test_a_changed_model_is_not_served_from_weights_of_before(run, smollm2, tmp_path):
    """A byte in the middle of a tensor changes, and nothing else: not the name, not the size."""
    model = tmp_path / "model.gguf"
    model.write_bytes(smollm2.read_bytes())
    arguments = ["run", "--model", model, "--prompt", FRANCE, "--max-tokens", 8, "--json", "--logprobs", 5]
    kept = ["--cache-dir", tmp_path / "cache"]
    before = run(*arguments, *kept).json["tokens"]
    first, = (tmp_path / "cache" / "weights").iterdir()

    moved = tmp_path / "elsewhere.gguf"
    model.rename(moved)  # a model that has only moved keeps its weights
    done = run("run", "--model", moved, *arguments[3:], *kept, env={"REALM_LOG": "info"})
    assert done.json["tokens"] == before and "of packed weights from" in done.err
    moved.rename(model)

    with open(model, "r+b") as file:
        file.seek(model.stat().st_size - 20_000_000)
        changed = bytes(b ^ 0x11 for b in file.read(200_000))
        file.seek(model.stat().st_size - 20_000_000)
        file.write(changed)
    after = run(*arguments, *kept).json["tokens"]
    assert after == run(*arguments, "--no-weight-cache").json["tokens"] and after != before
    second, = (tmp_path / "cache" / "weights").iterdir()  # the file of before is gone
    assert second.name != first.name


@pytest.mark.parametrize("folder", ["open", "file"])
def test_a_cache_folder_that_cannot_be_used_is_one_warning(run, smollm2, tmp_path, folder):
    cache = tmp_path / "cache"
    if folder == "file":
        cache.write_text("in the way")
    else:
        (cache / "programs").mkdir(parents=True, mode=0o700)
        (cache / "weights").mkdir(mode=0o700)
        (cache / "weights").chmod(0o777)
    done = run("run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 1, "--cache-dir", cache)
    assert done.out == " Paris\n"
    assert len([line for line in done.err.splitlines() if "packed weights are not kept" in line]) == 1


def test_processes_that_start_at_once_all_work(realm, smollm2, tmp_path):
    command = [realm, "run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", "1", "--cache-dir", tmp_path / "c"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=600) for process in started] == [(" Paris\n", "")] * 3
    assert len(list((tmp_path / "c" / "weights").iterdir())) == 1


def test_the_memory_for_keys_and_values_can_be_set(run, smollm2):
    done = run("run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 1, "--kv-memory", "64m",
               env={"REALM_LOG": "info"})
    assert "in 64 MiB, as asked for" in done.err
    done = run("run", "--model", smollm2, "--prompt", FRANCE, "--max-tokens", 1, "--kv-memory", "0", check=False)
    assert done.code == 2 and "--kv-memory" in done.err


def test_a_closed_output_is_an_error_and_no_file_of_ours(realm, smollm2):
    done = subprocess.run(["sh", "-c", '"$0" run --model "$1" --prompt x --max-tokens 2 >&-', realm, smollm2],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "standard output" in done.stderr


def test_help_of_a_command_is_shown_in_both_ways(run):
    assert run("help", "run").out == run("run", "--help").out
    assert run("help").out == run("--help").out
    assert "no command 'nothing'" in run("help", "nothing", check=False).err
