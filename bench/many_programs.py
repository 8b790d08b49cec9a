#!/usr/bin/env python3
"""What many different programs cost a server: its start with and without compiled ones in the cache, memory, a first call.

    bench/many_programs.py REALM MODEL.gguf [PROGRAMS]

Deploys so many small programs (default 1000), each another module, to one tenant, and serves them from an empty cache and then
from the filled one; a line of JSON each. About forty seconds, most of them for deploying. Needs httpx."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import httpx

PROGRAM = """(module (import "realm" "respond_text" (func $say (param i32 i32) (result i32))) (memory (export "memory") 1)
  (data (i32.const 0) "{word}") (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32) (call $say (i32.const 0) (i32.const {size}))))"""


def resident_mib(process):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{process.pid}/status").read_text())[1]) >> 10


def measure(realm, model, env, key, count, cache):
    began = time.monotonic()
    server = subprocess.Popen([realm, "serve", "--model", f"m={model}", "--kv-memory", "64m", "--port", "0"],
                              env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        url = next(line.split()[-1].decode() for line in server.stdout if b"serves at" in line)
        start_s = time.monotonic() - began
        resident, calls = resident_mib(server), []
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
            for i in range(0, count, max(1, count // 20)):
                began = time.monotonic()
                answer = http.post(f"/v1/programs/p{i}", json={})
                calls.append(time.monotonic() - began)
                assert answer.text == f"w{i}", answer.text
        print(json.dumps({"programs": count, "cache": cache, "start_s": round(start_s, 2), "resident_mib": resident,
                          "first_call_ms": round(sorted(calls)[len(calls) // 2] * 1e3, 2)}), flush=True)
    finally:
        server.terminate()
        server.wait(30)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    realm, model, count = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 1000
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        env = {**os.environ, "REALM_DATA": str(folder / "data"), "REALM_CACHE": str(folder / "deploy")}

        def command(*arguments):
            return subprocess.run([realm, *map(str, arguments)], capture_output=True, text=True, env=env, check=True).stdout.strip()

        command("tenant", "create", "acme")
        key = command("key", "create", "--tenant", "acme")
        for i in range(count):
            (folder / "p.wat").write_text(PROGRAM.format(word=f"w{i}", size=len(f"w{i}")))
            command("deploy", folder / "p.wat", "--tenant", "acme", "--name", f"p{i}", "--smoke", "none")
        env["REALM_CACHE"] = str(folder / "cache")
        command("run", "--model", model, "--prompt", "a", "--max-tokens", "1")  # the model's packed weights are another matter
        for cache in "empty", "filled":
            measure(realm, model, env, key, count, cache)


if __name__ == "__main__":
    main()
