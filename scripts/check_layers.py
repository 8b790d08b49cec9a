#!/usr/bin/env python3
"""Fails if an #include in src/ points up, and says which.

The rooms and their order are docs/ARCHITECTURE.md's: each may use those below it and, within one
level, none but itself.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the ground up; rooms in one row know nothing of each other.
LEVELS = [
    ["base"],
    ["compute", "text", "formats"],
    ["model"],
    ["engine"],
    ["sandbox"],
    ["library"],
    ["pipeline", "tenancy", "registry"],
    ["server"],
    ["cli"],
]
# The one arrow inside a level: tokenizers and templates are read from model files.
ALLOWED = {("text", "formats")}

LEVEL = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def complaint(room, other):
    if room == other or (room, other) in ALLOWED or LEVEL[other] < LEVEL[room]:
        return None
    where = "beside" if LEVEL[other] == LEVEL[room] else "above"
    return f"{other} stands {where} {room}"


def check(path):
    parts = path.relative_to(ROOT / "src").parts
    room = parts[0]
    if room not in LEVEL:
        yield f"{path.relative_to(ROOT)}: src/{room} has no place in scripts/check_layers.py's LEVELS"
        return
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        other = match.group(1).split("/")[0]
        if "/" in match.group(1) and other in LEVEL:
            reason = complaint(room, other)
            if reason:
                yield f'{path.relative_to(ROOT)}:{number}: "{match.group(1)}": {reason}'


def main():
    files = sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in {".c", ".h", ".cu", ".cuh"})
    complaints = [c for path in files if len(path.relative_to(ROOT / "src").parts) > 1 for c in check(path)]
    print("\n".join(complaints) or f"{len(files)} files: every arrow points down")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
