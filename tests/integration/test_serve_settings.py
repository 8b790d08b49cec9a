"""`realm init --server` and SIGHUP: settings written, read, and read again."""
import re
import signal

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
