"""`realm tokenize` gives llama.cpp's token ids: on hard, long and random texts, with special tokens and
without, for SmolLM2, Gemma 3 and every vocabulary that llama.cpp ships and that is of a family Realm has.

Golden ids are in tokens/NAME.json, made by tokens/make.py. The vocabularies come from the cache
(tokens/fetch_vocabs.sh, run here if need be); where there is no network, set REALM_OFFLINE=1 to skip them."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

TOKENS = pathlib.Path(__file__).parent / "tokens"
sys.path.insert(0, str(TOKENS))

import texts  # noqa: E402
from digest import digest  # noqa: E402

NAMES = sorted(path.stem for path in TOKENS.glob("*.json"))


@pytest.fixture(scope="session")
def vocabularies():
    fetched = subprocess.run([TOKENS / "fetch_vocabs.sh"], capture_output=True, text=True)
    if fetched.returncode:
        if os.environ.get("REALM_OFFLINE") == "1":
            pytest.skip("REALM_OFFLINE=1 and llama.cpp's vocabularies are not in the cache")
        pytest.fail(f"fetch_vocabs.sh: {fetched.stderr}(set REALM_OFFLINE=1 to skip)")
    return pathlib.Path(fetched.stdout.strip())


@pytest.fixture
def path(request):
    """The GGUF file of a golden file's name."""
    if request.param in ("smollm2", "gemma3"):
        return request.getfixturevalue(request.param)
    return request.getfixturevalue("vocabularies") / f"ggml-vocab-{request.param}.gguf"


def tokenize(realm, path, batch, *options):
    """The parsed JSON of every text, in one run."""
    process = subprocess.run([realm, "tokenize", "--model", path, "--json", "--null", *options, "-"],
                             input=b"".join(text + b"\0" for text in batch), capture_output=True, timeout=600)
    assert process.returncode == 0, process.stderr.decode()
    return [json.loads(line) for line in process.stdout.decode().split("\n")[:-1]]


def assert_equal(batch, got, wanted):
    """wanted holds ids or their digests."""
    assert len(got) == len(wanted) == len(batch)
    for text, mine, theirs in zip(batch, got, wanted):
        ids = mine["tokens"]
        assert (digest(ids) if isinstance(theirs, str) else ids) == theirs, f"{text[:200]!r} gave {ids[:50]}"


@pytest.mark.parametrize("name, path", [(name, name) for name in NAMES], indirect=["path"])
def test_ids_are_llama_cpps(realm, name, path):
    golden = json.loads((TOKENS / f"{name}.json").read_text())
    for kind, batch in (("hard", texts.HARD), ("random", texts.random_texts())):
        assert_equal(batch, tokenize(realm, path, batch), golden[kind])
        assert_equal(batch, tokenize(realm, path, batch, "--no-special"), golden[f"{kind}_plain"])


def test_json_says_what_the_lines_say(run, smollm2):
    text = "Hi <|im_end|>\n\t\\ é 😀"
    parsed = run("tokenize", "--model", smollm2, "--json", text).json
    assert parsed["count"] == len(parsed["tokens"]) == len(parsed["pieces"])
    lines = run("tokenize", "--model", smollm2, text).out.rstrip("\n").split("\n")
    assert [int(line.split("\t")[0]) for line in lines] == parsed["tokens"]
    assert "<|im_end|>" in parsed["pieces"]
    assert any(line.endswith("\t\\n\\t") or line.endswith("\t\\n") for line in lines)


def test_pieces_that_are_not_utf8_come_as_bytes_too(run, smollm2):
    parsed = run("tokenize", "--model", smollm2, "--json", "--no-special", "𠀀").json
    whole = b"".join(bytes.fromhex(parsed.get("bytes", {}).get(str(i), piece.encode().hex()))
                     for i, piece in enumerate(parsed["pieces"]))
    assert whole.decode() == "𠀀"


def test_standard_input_is_read_to_its_last_byte(run, smollm2):
    with_newline = run("tokenize", "--model", smollm2, "--json", "-", stdin=b"Hello\n").json
    without = run("tokenize", "--model", smollm2, "--json", "-", stdin=b"Hello").json
    assert with_newline["count"] == without["count"] + 1
    assert run("tokenize", "--model", smollm2, "--json", "-", stdin=b"").json["count"] == 0


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_decoding_undoes_encoding(realm, request, model):
    path = request.getfixturevalue(model)
    # In SentencePiece U+2581 stands for the space, so text that has it already does not come back.
    batch = [text for text in texts.HARD if is_utf8(text) and "▁".encode() not in text]
    ids = [" ".join(map(str, one["tokens"])).encode() for one in tokenize(realm, path, batch, "--no-special")]
    for text, decoded in zip(batch, tokenize(realm, path, ids, "--decode")):
        assert decoded["text"].encode() == text


def is_utf8(text):
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("unit", [b"a", b" ", b"\n", b"1", "é".encode(), b"<|im_end|>", b"a b"])
def test_a_megabyte_takes_about_a_second(run, smollm2, unit):
    text = unit * (1_000_000 // len(unit))
    assert run("tokenize", "--model", smollm2, "--json", "-", stdin=text, timeout=20).json["count"] > 0


def test_a_tokenizer_of_another_family_is_refused_by_name(run, vocabularies):
    refused = run("tokenize", "--model", vocabularies / "ggml-vocab-nomic-bert-moe.gguf", "Hi", check=False)
    assert refused.code == 1
    assert "'t5'" in refused.err
