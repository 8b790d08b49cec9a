"""The commands about tenants, keys, programs and usage, on a data folder of each test's own."""
import csv
import datetime
import io
import json
import os
import pathlib
import re
import sqlite3
import subprocess

import pytest

HOSTILE = pathlib.Path(__file__).resolve().parent / "hostile"


@pytest.fixture
def realm_in(run, tmp_path):
    """realm_in("tenant", "list") runs the program on this test's data folder."""

    def call(*arguments, check=True):
        return run(*arguments, check=check, env={"REALM_DATA": str(tmp_path / "data"), "REALM_CACHE": str(tmp_path / "cache")})

    call.folder = tmp_path / "data"
    return call


def echo(word):
    """A program that answers with a word: as small as one can be, and different for each word."""
    return f"""(module
      (import "realm" "respond_text" (func $say (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "{word}")
      (func (export "realm_abi") (result i32) (i32.const 1))
      (func (export "realm_handle") (result i32)
        (call $say (i32.const 0) (i32.const {len(word)}))))"""


@pytest.fixture
def program(tmp_path):
    def write(word):
        path = tmp_path / f"{word}.wat"
        path.write_text(echo(word))
        return path

    return write


def test_a_tenant_is_created_shown_changed_and_deleted(realm_in):
    realm_in("tenant", "create", "acme", "--requests-per-minute", 500, "--models", "gemma,smollm2", "--weight", 2.5)
    shown = realm_in("tenant", "show", "acme", "--json").json
    assert shown["name"] == "acme" and shown["number"] == 1
    assert shown["settings"]["requests_per_minute"] == 500
    assert shown["settings"]["models"] == ["gemma", "smollm2"]
    assert shown["settings"]["programs"] is None and shown["settings"]["weight"] == 2.5
    realm_in("tenant", "set", "acme", "--tokens-per-day", 1000, "--models", "all", "--programs", "none")
    changed = realm_in("tenant", "show", "acme", "--json").json["settings"]
    assert changed == {**shown["settings"], "tokens_per_day": 1000, "models": None, "programs": []}
    assert "500" in realm_in("tenant", "show", "acme").out
    realm_in("tenant", "create", "globex")
    assert [t["name"] for t in realm_in("tenant", "list", "--json").json] == ["acme", "globex"]
    realm_in("tenant", "delete", "acme")
    assert [t["name"] for t in realm_in("tenant", "list", "--json").json] == ["globex"]


@pytest.mark.parametrize("arguments, code, words", [
    (["tenant", "create", "Acme Inc"], 1, "a-z"),
    (["tenant", "create", "globex"], 1, "already"),
    (["tenant", "create", "x", "--requests-per-minute", "-5"], 2, "requests-per-minute"),
    (["tenant", "create", "x", "--priority", "urgent"], 1, "urgent"),
    (["tenant", "create", "x", "--capabilities", "models,root"], 1, "root"),
    (["tenant", "set", "nobody", "--weight", "1"], 1, "nobody"),
    (["tenant", "shwo", "x"], 2, "did you mean 'show'"),
    (["tenant"], 2, None),
    (["key", "create"], 2, "--tenant"),
    (["key", "create", "--tenant", "globex", "--admin"], 2, "not both"),
    (["key", "create", "--tenant", "globex", "--scopes", "admin"], 1, "admin"),
    (["key", "create", "--tenant", "globex", "--scopes", "all"], 1, "'all'"),
    (["key", "create", "--tenant", "globex", "--expires", "2020-01-01"], 1, "past"),
    (["key", "create", "--tenant", "globex", "--expires", "soon"], 1, "90d"),
    (["key", "create", "--tenant", "nobody"], 1, "nobody"),
    (["key", "revoke", "nothing"], 1, "nothing"),
    (["deploy", "none.wasm", "--tenant", "globex"], 1, "none.wasm"),
    (["deploy", "none.wasm"], 2, "--tenant"),
    (["deploy", "x.wasm", "--tenant", "globex", "--canary", "10"], 2, "10%"),
    (["rollback", "none", "--tenant", "globex"], 1, "none"),
    (["programs", "--tenant", "globex", "--name", "none"], 1, "none"),
    (["programs", "--name", "x", "--route", "1=100"], 2, "--tenant"),
    (["usage", "--from", "2026-02-30"], 2, "2026-02-30"),
    (["usage", "--format", "xml"], 2, "xml"),
    (["usage", "--by", "week"], 2, "week"),
    (["usage", "--tenant", "nobody"], 1, "nobody"),
])
def test_mistakes_are_named(realm_in, arguments, code, words):
    realm_in("tenant", "create", "globex")
    done = realm_in(*arguments, check=False)
    assert done.code == code, done.err
    if words:
        assert words in done.err and len(done.err.splitlines()) == 1


def test_a_folder_without_tenants_says_how_to_begin(realm_in):
    for command in (["tenant", "list"], ["key", "list"], ["usage"], ["programs"]):
        done = realm_in(*command, check=False)
        assert done.code == 1 and "realm tenant create" in done.err
    assert not realm_in.folder.exists()


def test_a_key_is_shown_once_and_kept_as_a_hash(realm_in):
    realm_in("tenant", "create", "acme")
    made = realm_in("key", "create", "--tenant", "acme", "--expires", "30d", "--name", "ci", "--scopes", "inference,deploy")
    key = made.out.strip()
    assert re.fullmatch(r"rk_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", key)
    # Nothing in the folder holds the secret, in any form that can be read.
    for path in realm_in.folder.iterdir():
        assert key[16:].encode() not in path.read_bytes()
    listed = realm_in("key", "list", "--tenant", "acme", "--json")
    assert key[16:] not in listed.out
    (row,) = listed.json
    assert row["id"] == key[3:15] and row["tenant"] == "acme" and row["name"] == "ci"
    assert row["scopes"] == ["inference", "deploy"] and row["revoked"] is None and row["last_used"] is None
    expires = datetime.datetime.strptime(row["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    left = expires - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=29, hours=23) < left <= datetime.timedelta(days=30)
    realm_in("key", "revoke", row["id"])
    assert realm_in("key", "list", "--json").json[0]["revoked"]
    admin = realm_in("key", "create", "--admin", "--json").json
    assert admin["tenant"] is None and admin["scopes"] == ["admin"] and admin["key"].startswith("rk_")


def test_versions_are_deployed_split_and_rolled_back(realm_in, program):
    realm_in("tenant", "create", "acme")
    realm_in("tenant", "create", "globex")
    assert realm_in("deploy", program("one"), "--tenant", "acme", "--name", "p", "--json").json["version"] == 1
    realm_in("deploy", program("two"), "--tenant", "acme", "--name", "p", "--note", "second")
    realm_in("deploy", program("three"), "--tenant", "acme", "--name", "p", "--canary", "10%")
    realm_in("deploy", program("one"), "--tenant", "globex")

    def shares():
        (listed,) = realm_in("programs", "--tenant", "acme", "--json").json
        return {v["version"]: v["percent"] for v in listed["versions"]}

    assert shares() == {1: 0, 2: 90, 3: 10}
    realm_in("programs", "--tenant", "acme", "--name", "p", "--route", "1=50,3=50")
    assert shares() == {1: 50, 2: 0, 3: 50}
    assert realm_in("rollback", "p", "--tenant", "acme", "--to", 2, "--json").json["version"] == 2
    assert realm_in("rollback", "p", "--tenant", "acme", "--json").json["version"] == 1
    assert shares() == {1: 100, 2: 0, 3: 0}
    table = realm_in("programs", "--tenant", "acme", "--name", "p").out
    assert "second" in table and len(table.splitlines()) == 5
    # The other tenant's program of the file's name is its own.
    assert [p["program"] for p in realm_in("programs", "--tenant", "globex", "--json").json] == ["one"]
    realm_in("programs", "--tenant", "acme", "--name", "p", "--delete")
    assert realm_in("programs", "--tenant", "acme", "--json").json == []
    assert len(realm_in("programs", "--json").json) == 1


def test_what_a_sandbox_would_refuse_is_not_deployed(realm_in, tmp_path):
    realm_in("tenant", "create", "acme")
    for name, text, words in (("text", "hello", "expected"), ("empty", "(module)", "memory"),
                              ("wasi", echo("x").replace('"realm" "respond_text"', '"wasi" "fd_write"'), "fd_write")):
        path = tmp_path / f"{name}.wat"
        path.write_text(text)
        done = realm_in("deploy", path, "--tenant", "acme", check=False)
        assert done.code == 1 and words in done.err, done.err
    assert realm_in("programs", "--json").json == []


TRAPS = echo("x").replace("(call $say (i32.const 0) (i32.const 1))", "(unreachable)")
SPINS = echo("x").replace("(call $say (i32.const 0) (i32.const 1))", "(loop $on (br $on)) (i32.const 0)")
# Answers OK if the model of that name is there, traps if not.
WANTS_MODEL = """(module
  (import "realm" "model_open" (func $open (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "smol")
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (if (i32.le_s (call $open (i32.const 0) (i32.const 4)) (i32.const 0)) (then unreachable)) (i32.const 0)))"""
# Answers with the status of a body that it does not like.
PICKY = echo("x").replace("(call $say (i32.const 0) (i32.const 1))", "(i32.const -1)")
# Traps if it finds a state, else keeps one.
REMEMBERS = """(module
  (import "realm" "state_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "realm" "state_put" (func $put (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "k")
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (if (i32.ge_s (call $get (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 64)) (i32.const 0)) (then unreachable))
    (call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))))"""
CALLS = """(module
  (import "realm" "call" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "good{}")
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (if (i32.lt_s (call $call (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 2) (i32.const 64) (i32.const 64)) (i32.const 0))
      (then unreachable)) (i32.const 0)))"""


def test_a_program_is_tried_before_it_is_stored(realm_in, tmp_path, smollm2):
    realm_in("tenant", "create", "acme", "--cpu-ms", 300)

    def deploy(name, text, *more, check=False):
        path = tmp_path / f"{name}.wat"
        path.write_text(text)
        return realm_in("deploy", path, "--tenant", "acme", *more, check=check)

    for name, text, words in (("trap", TRAPS, "unreachable"), ("spin", SPINS, "CPU time")):
        done = deploy(name, text)
        assert done.code == 1 and "the smoke test failed, nothing was deployed: " in done.err and words in done.err, done.err
    # One that others leave too little of a core to use up its CPU time.
    realm_in("tenant", "set", "acme", "--cpu-ms", 5000, "--wall-ms", 2000)
    assert "nothing was deployed: the request took longer than its 2000 ms" in deploy("spin", SPINS).err
    assert "unreachable" in deploy("caller", CALLS).err, "what it calls is not there"
    assert realm_in("programs", "--json").json == []
    for name, text, more in (("trap", TRAPS, ("--smoke", "none")), ("good", echo("x"), ("--smoke", "{}")), ("caller", CALLS, ()),
                             ("picky", PICKY, ()), ("keep", REMEMBERS, ()), ("keep", REMEMBERS, ())):
        assert deploy(name, text, *more).code == 0, (name, more)
    assert deploy("picky", PICKY, "--smoke", "{}").code == 1, "a body that came with it must do"
    assert {p["program"]: len(p["versions"]) for p in realm_in("programs", "--json").json} == {
        "trap": 1, "good": 1, "caller": 1, "picky": 1, "keep": 2}
    done = realm_in("deploy", tmp_path / "good.wat", "--tenant", "nobody", check=False)
    assert done.code == 1 and "there is no tenant 'nobody'" in done.err


def test_a_program_is_tried_with_the_model_that_is_given(realm_in, tmp_path, smollm2):
    realm_in("tenant", "create", "acme")
    path = tmp_path / "wants.wat"
    path.write_text(WANTS_MODEL)
    done = realm_in("deploy", path, "--tenant", "acme", check=False)
    assert done.code == 1 and "without a model: --model FILE gives it one" in done.err
    done = realm_in("deploy", path, "--tenant", "acme", "--model", f"other={smollm2}", check=False)
    assert done.code == 1 and "without a model" not in done.err
    realm_in("deploy", path, "--tenant", "acme", "--model", f"smol={smollm2}")
    realm_in("tenant", "set", "acme", "--models", "large")
    done = realm_in("deploy", path, "--tenant", "acme", "--model", f"smol={smollm2}", check=False)
    assert done.code == 1, "the tenant may not use that model"
    done = realm_in("deploy", path, "--tenant", "acme", "--server", "http://localhost:1", "--model", smollm2, check=False)
    assert done.code == 2 and "--model" in done.err


def test_a_tenants_modules_have_a_limit(realm_in, program):
    realm_in("tenant", "create", "acme", "--program-bytes", 600)
    realm_in("deploy", program("one"), "--tenant", "acme")
    done = realm_in("deploy", program("two"), "--tenant", "acme", check=False)
    assert done.code == 1 and "program_bytes" in done.err


def test_usage_is_exported_exactly(realm_in):
    realm_in("tenant", "create", "acme")
    realm_in("tenant", "create", "globex")
    database = sqlite3.connect(realm_in.folder / "realm.db")
    columns = [row[1] for row in database.execute("PRAGMA table_info(usage)")]
    truth = []
    for day in (20000, 20001):
        for tenant, name in ((1, "acme"), (2, "globex")):
            for model in ("gemma", "smollm2"):
                row = dict.fromkeys(columns, 0) | {
                    "day": day, "tenant": tenant, "key": "k", "model": model, "program": "chat", "requests": 3,
                    "prompt_tokens": day * tenant, "completion_tokens": len(model), "wall_ns": 9, "latency_10": 3}
                database.execute(f"INSERT INTO usage({','.join(row)}) VALUES({','.join('?' * len(row))})", list(row.values()))
                truth.append((day, name, model, day * tenant, len(model)))
    database.commit()
    database.close()

    text = realm_in("usage").out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 8
    epoch = datetime.date(1970, 1, 1)
    seen = {((datetime.date.fromisoformat(r["day"]) - epoch).days, r["tenant"], r["model"], int(r["prompt_tokens"]),
             int(r["completion_tokens"])) for r in rows}
    assert seen == set(truth)
    assert all(r["p50_ms"] == "32.0" and r["requests"] == "3" for r in rows)

    day = (epoch + datetime.timedelta(days=20001)).isoformat()
    (one,) = realm_in("usage", "--tenant", "globex", "--from", day, "--to", day, "--by", "tenant", "--format", "json").json
    assert one["tenant"] == "globex" and one["prompt_tokens"] == 2 * 2 * 20001 and one["requests"] == 6
    assert "day" not in one and "model" not in one
    assert realm_in("usage", "--to", "2001-01-01", "--format", "json").json == []
    # A deleted tenant's usage is still there to be billed.
    realm_in("tenant", "delete", "acme")
    assert len(realm_in("usage", "--tenant", "acme", "--format", "json").json) == 4


def test_a_damaged_database_says_so(realm_in):
    realm_in("tenant", "create", "acme")
    with open(realm_in.folder / "realm.db", "r+b") as file:
        file.write(b"garbage" * 20)
    done = realm_in("tenant", "list", check=False)
    assert done.code == 1 and "damaged" in done.err and "backup" in done.err and len(done.err.splitlines()) == 1


def test_a_disk_that_takes_no_more_is_said_and_loses_nothing(realm, realm_in, tmp_path):
    """A limit of file sizes stands for a full disk: the system answers a write in the same way."""
    realm_in("tenant", "create", "before")
    small = f"trap '' XFSZ; ulimit -f 8; exec {realm} tenant create after --data {tmp_path / 'data'}"
    for shell in (small, small.replace("trap '' XFSZ; ", "")):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert done.returncode == 1 and "File too large" in done.stderr, done
    realm_in("tenant", "create", "later")
    names = [t["name"] for t in realm_in("tenant", "list", "--json").json]
    assert names == ["before", "later"]


def test_commands_at_the_same_time_do_not_disturb_each_other(realm, realm_in):
    realm_in("tenant", "create", "first")
    env = {**os.environ, "REALM_DATA": str(realm_in.folder)}
    running = [subprocess.Popen([realm, "tenant", "create", f"t{i}"], env=env, stdout=subprocess.DEVNULL) for i in range(12)]
    assert [process.wait() for process in running] == [0] * 12
    listed = realm_in("tenant", "list", "--json").json
    assert len(listed) == 13 and len({t["number"] for t in listed}) == 13


def test_files_are_for_their_owner_alone(realm_in):
    realm_in("tenant", "create", "acme")
    assert realm_in.folder.stat().st_mode & 0o077 == 0
    for path in realm_in.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0
