"""OpenAI's official package for Node against `realm serve`: node/client.mjs, one check a test. The package is installed
once into the cache, from the lock file beside it; without Node and npm, or a way to their registry, all are skipped."""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

import openai
import pytest

import nodes
from nodes import eventually

HERE = pathlib.Path(__file__).resolve().parent / "node"
CACHE = pathlib.Path(os.environ.get("REALM_CACHE") or pathlib.Path.home() / ".cache" / "realm")

@pytest.fixture(scope="module")
def package():
    """The folder with the package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("Node and npm are not there")
    if int(re.match(r"v(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True).stdout)[1]) < 20:
        pytest.skip("the package wants Node 20 or newer")
    lock = (HERE / "package-lock.json").read_bytes()
    folder = CACHE / "node" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        done = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True,
                              text=True, timeout=180)
        if done.returncode:
            pytest.skip(f"npm could not install the package: {done.stderr[-300:]}")
        (folder / "ready").touch()
    return folder


@pytest.fixture(scope="module")
def node(realm, smollm2_with_tools, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, \
            nodes.node(realm, tmp_path_factory.mktemp("node") / "data", smollm2_with_tools) as n:
        patch.setenv("XDG_CACHE_HOME", str(smollm2_with_tools.parent)) # the packed weights go with the model
        n.usual = n.tenant("usual")
        n.single = n.tenant("single", "--concurrent-requests", "1")
        n.start()
        for key in (n.usual, n.single):
            with n.http(key) as http:
                eventually(lambda: http.get("/v1/models").status_code == 200)
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


@pytest.mark.parametrize("check", ["models", "chat", "stream", "abort", "tools", "json", "embeddings", "completions", "errors",
                                   "retries"])
def test_openais_package_for_node(package, node, check):
    key = node.single if check == "retries" else node.usual
    done = subprocess.run(["node", HERE / "client.mjs", package, node.server.url, key, "smol", check], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_openais_package_for_python_calls_tools_too(node):
    client = node.client(node.usual)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}}}
    ask = {"model": "smol", "messages": [{"role": "user", "content": "How is the weather in Paris?"}], "temperature": 0,
           "max_tokens": 100, "tools": [tool], "tool_choice": "required"}
    answer = client.chat.completions.create(**ask)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
    pieces = [c.choices[0] for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    streamed = [t for p in pieces for t in p.delta.tool_calls or []]
    assert "".join(t.function.arguments or "" for t in streamed) == call.function.arguments
    assert pieces[-1].finish_reason == "tool_calls"
    later = ask | {"tool_choice": "auto", "messages": [*ask["messages"], answer.choices[0].message.model_dump(exclude_none=True),
                                                       {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]}
    assert client.chat.completions.create(**later).choices[0].message
    other = {"type": "function", "function": {"name": "other"}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}}
    call = client.chat.completions.create(**{**ask, "tools": [other, tool], "tool_choice": some}).choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    for wrong in {"mode": "required", "tools": []}, {"mode": "any", "tools": [other]}, {"mode": "auto", "tools": [other]}, {}:
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(**{**ask, "tool_choice": {"type": "allowed_tools", "allowed_tools": wrong}})
        assert e.value.param == "tool_choice"
    bare = {**ask, "tools": [{"type": "function", "function": {"name": "now"}}]}
    call = client.chat.completions.create(**bare).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("now", "{}"), "without parameters it takes none"
