"""Runs tests/tools/logits_tool, the program that prints what a model makes of given tokens.

The program is the one that LOGITS_TOOL names, or that stands beside the program REALM names, or that
of the release build.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def program():
    realm = Path(os.environ.get("REALM") or ROOT / "build" / "release" / "realm")
    path = Path(os.environ.get("LOGITS_TOOL") or realm.resolve().parent / "logits_tool")
    if not path.exists():
        pytest.fail(f"{path} does not exist: build it, or set LOGITS_TOOL")
    return path


def ask(model, questions, options=()):
    """Answers to lines of questions, as lists of words."""
    done = subprocess.run([program(), model, *options], input="\n".join(questions) + "\n",
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def logits(model, tokens, positions, options=()):
    questions = ["tokens " + " ".join(map(str, tokens))] + [f"logits {p}" for p in positions]
    return [[float(word) for word in words] for words in ask(model, questions, options)]
