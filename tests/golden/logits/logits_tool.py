"""Runs tests/tools/logits_tool, the program that prints what a model makes of given tokens.

The program is the one that LOGITS_TOOL names, or that stands beside the program REALM names, or that
of the release build. Needs nothing but Python, as it also runs where no package is (measure_device.py).
"""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MEASURED = 5  # ids a step whose log-probabilities are compared


def program():
    realm = Path(os.environ.get("REALM") or ROOT / "build" / "release" / "realm")
    path = Path(os.environ.get("LOGITS_TOOL") or realm.resolve().parent / "logits_tool")
    assert path.exists(), f"{path} does not exist: build it, or set LOGITS_TOOL"
    return path


def ask(model, questions, options=(), environment=()):
    """Answers to lines of questions, as lists of words."""
    done = subprocess.run([program(), model, *options], input="\n".join(questions) + "\n",
                          capture_output=True, text=True, env={**os.environ, **dict(environment)})
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def logits(model, tokens, positions, options=()):
    questions = ["tokens " + " ".join(map(str, tokens))] + [f"logits {p}" for p in positions]
    return [[float(word) for word in words] for words in ask(model, questions, options)]


def questions(case):
    """The prompt and all but the last generated token are fed; each step asks for its top ids."""
    first = len(case["prompt"]) - 1
    yield "tokens " + " ".join(map(str, case["prompt"] + case["tokens"][:-1]))
    for i, step in enumerate(case["top"]):
        yield f"ask {first + i} " + " ".join(str(id) for id, _ in step[:MEASURED])


def shares(truth, model, options=()):
    """Realm's log-probabilities of the truth's likeliest ids, a list a step."""
    lines = [line for case in truth["cases"] for line in questions(case)]
    return [[float(word) for word in words] for words in ask(model, lines, options)]


def true_shares(truth):
    return [[share for _, share in step[:MEASURED]] for case in truth["cases"] for step in case["top"]]


def distance(ours, theirs):
    """Mean and largest difference."""
    found = [abs(a - b) for step, other in zip(ours, theirs, strict=True)
             for a, b in zip(step, other, strict=True)]
    return sum(found) / len(found), max(found)
