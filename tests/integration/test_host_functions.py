"""Every function of docs/HOST_ABI.md, called by guests in C compiled as the documents tell tenants to, in 32-bit and
64-bit memories. What a guest claims and does not find ends its request and names the line."""
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUESTS = pathlib.Path(__file__).resolve().parent / "guests"
FLAGS = ["-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-fvisibility=hidden",
         "-mbulk-memory", "-Wl,--no-entry", "-Wl,--stack-first", f"-I{ROOT / 'guest' / 'include'}"]


@pytest.fixture(scope="session")
def compile_guest(tmp_path_factory):
    clang = next(filter(None, map(shutil.which, ["clang", *(f"clang-{n}" for n in range(19, 13, -1))])), None)
    if not clang:
        pytest.skip("there is no clang")
    folder = tmp_path_factory.mktemp("guests")

    def compile_guest(name, width):
        program = folder / f"{name}{width}.wasm"
        if not program.exists():
            subprocess.run([clang, f"--target=wasm{width}", *FLAGS, "-o", program, GUESTS / f"{name}.c"], check=True)
        return program

    return compile_guest


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", sorted({p.stem for p in GUESTS.glob("*.c")} - {"mistakes"}))
def test_host_functions_do_what_is_documented(run, smollm2, compile_guest, name, width):
    if name == "map" and width == 32:
        pytest.skip("only a 64-bit memory can hold a model")
    done = run("run", "--model", smollm2, "--program", compile_guest(name, width), "--prompt", "x", "--memory", 256,
               env={"REALM_LOG": "error"}, check=False)
    assert done.code == 0, done.err
    assert done.out == "ok\n"


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("mistake, words", [
    ("unknown option", ["session_open", "colour"]),
    ("option out of range", ["sample", "temperature"]),
    ("no max_tokens", ["generate", "max_tokens"]),
    ("too many logprobs", ["generate", "logprobs"]),
    ("answer that is not JSON", ["respond_json"]),
    ("two answers", ["respond_json"]),
    ("closed session", ["session_length", "session"]),
    ("model as session", ["session_length", "session"]),
    ("unaligned ids", ["feed", "ids"]),
    ("wild floats", ["logits", "out"]),
    ("shapes that do not fit", ["add"]),
    ("freed tensor", ["tensor_read", "tensor"]),
    ("read past a tensor", ["tensor_read"]),
    ("layers out of order", ["layer", "order"]),
    ("kind of grammar", ["constrain", "kind"]),
])
def test_mistakes_end_the_request_and_name_the_function(run, smollm2, compile_guest, mistake, words, width):
    done = run("run", "--model", smollm2, "--program", compile_guest("mistakes", width), "--prompt", mistake,
               check=False)
    assert done.code == 1 and "came through" not in done.out
    assert all(word in done.err for word in words), done.err
    assert len(done.err.splitlines()) == 1


def test_a_32_bit_program_cannot_ask_for_the_64_bit_function(run, smollm2, tmp_path):
    program = tmp_path / "map32.wat"
    program.write_text("""(module
      (import "realm" "memory64_load_layer" (func (param i32 i32 i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "realm_abi") (result i32) (i32.const 1))
      (func (export "realm_handle") (result i32) (i32.const 0)))""")
    done = run("run", "--model", smollm2, "--program", program, "--prompt", "x", check=False)
    assert done.code == 1 and "memory64_load_layer" in done.err


def test_every_documented_function_is_declared_and_called():
    functions = (ROOT / "docs" / "HOST_ABI.md").read_text().split("\n## Functions")[1]
    documented = set(re.findall(r"^\| `(\w+)`[ (~)]*\| `\(", functions, re.M))
    header = (ROOT / "guest" / "include" / "realm_guest.h").read_text()
    crate = (ROOT / "guest" / "rust" / "src" / "raw.rs").read_text()
    called = "".join(p.read_text() for p in GUESTS.glob("*.[ch]"))
    assert len(documented) > 45
    assert set(re.findall(r"^REALM_IMPORT\((\w+)\)", header, re.M)) == documented
    assert set(re.findall(r"pub fn (\w+)", crate)) == documented - {"memory64_load_layer"}
    missing = {name for name in documented if f"realm_{name}(" not in called}
    assert not missing
