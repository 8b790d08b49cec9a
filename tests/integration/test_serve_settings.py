"""`realm init --server` and SIGHUP: settings written, read, and read again."""
import concurrent.futures
import re
import signal
import subprocess

import httpx
import pytest

from nodes import eventually
from serving import serving


@pytest.fixture
def settings(run, tmp_path, smollm2):
    run("init", "--server", tmp_path)
    path = tmp_path / "realm.yaml"
    path.write_text(path.read_text().replace("/path/to/model.gguf", str(smollm2)).replace("port: 8080", "port: 0")
                    .replace("#kv-memory: 4g", "kv-memory: 64m"))
    return path


def test_the_written_settings_are_whole_and_serve(realm, run, settings):
    text = settings.read_text()
    names = set(re.findall(r"^  (?:-\w, |    )--([a-z0-9-]+)", run("serve", "--help").out, re.M))
    assert len(names) > 20
    for name in names - {"config", "quiet", "help"}:
        assert re.search(rf"^#?{name}:", text, re.M), f"--{name} is not in realm.yaml"
    for name in re.findall(r"^#?([a-z0-9-]+):(?: |$)", text, re.M):
        assert name in names, f"realm.yaml names '{name}', which is no option"
    again = run("init", "--server", settings.parent, check=False)
    assert again.code == 1 and "exists already" in again.err, "nothing is written over"
    with serving(realm, "--config", settings) as s:
        assert [m["id"] for m in httpx.get(s.url + "/v1/models").json()["data"]] == ["small"]


def ask(s, model):
    return httpx.post(s.url + "/v1/completions", json={"model": model, "prompt": "Hello", "max_tokens": 1})


def test_sighup_rereads_what_can_change_and_names_what_cannot(realm, settings):
    text = settings.read_text()
    with serving(realm, "--config", settings, "--drain", "7") as s:
        def reload(changed, words):
            before = s.read_log().count(words)
            settings.write_text(changed)
            s.process.send_signal(signal.SIGHUP)
            eventually(lambda: s.read_log().count(words) > before)

        assert ask(s, "nick").status_code == 404
        aliased = text + "alias: [nick=small, other=small]\nmax-body: 1\n"
        reload(aliased, "reloaded")
        assert ask(s, "nick").json()["model"] == "small"
        assert httpx.get(s.url + "/v1/models/other").json()["id"] == "small"
        big = {"model": "small", "prompt": "x" * (2 << 20), "max_tokens": 1}
        assert httpx.post(s.url + "/v1/completions", json=big).status_code == 413
        reload(text + "alias: [nick=none]\n", "nothing was changed: alias 'nick=none'")
        assert ask(s, "nick").status_code == 200, "what was stays"
        reload(text + "colour: red\n", "nothing was changed")
        assert ask(s, "nick").status_code == 200
        reload(text.replace("kv-memory: 64m", "kv-memory: 128m") + "alias: new=small\n", "'kv-memory' has changed and needs a restart")
        eventually(lambda: ask(s, "new").status_code == 200)
        assert ask(s, "nick").status_code == 404
        assert "'drain'" not in s.read_log() and "'port'" not in s.read_log()
        assert s.stop() == 0


@pytest.fixture
def limited(realm, tmp_path):
    """limited(GIB): a program that is Realm with so much address space."""
    def make(gib):
        script = tmp_path / f"limited-{gib}"
        script.write_text(f'#!/bin/sh\nulimit -v {gib << 20} && exec "{realm}" "$@"\n')
        script.chmod(0o755)
        return script

    return make


def test_few_sandboxes_fit_into_little_address_space_and_requests_wait_for_them(realm, limited, smollm2):
    arguments = ("--model", f"smol={smollm2}", "--kv-memory", "64m", "--threads", "1")
    refused = subprocess.run([limited(100), "serve", "--port", "0", *arguments], capture_output=True, text=True, timeout=600)
    assert refused.returncode == 1
    assert "GiB of address space for 256 sandboxes cannot be reserved" in refused.stderr and "--sandboxes" in refused.stderr
    with serving(limited(100), *arguments, env={"REALM_SANDBOXES": "2"}) as s:
        def generate(_):
            return httpx.post(s.url + "/v1/completions", timeout=600,
                              json={"model": "smol", "prompt": "One two three", "max_tokens": 24, "ignore_eos": True, "temperature": 0}).json()

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(generate, range(8)))
        assert {a["usage"]["completion_tokens"] for a in answers} == {24}, answers
        assert len({a["choices"][0]["text"] for a in answers}) == 1
    for wrong in ("0", "8193", "many"):
        done = subprocess.run([realm, "serve", *arguments, "--sandboxes", wrong], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "--sandboxes" in done.stderr


def test_one_request_needs_the_addresses_of_one(limited, smollm2):
    done = subprocess.run([limited(32), "run", "--model", smollm2, "--prompt", "The capital of France is",
                           "--max-tokens", "1", "--kv-memory", "64m"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, " Paris\n"), done.stderr
