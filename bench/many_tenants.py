#!/usr/bin/env python3
"""What thousands of tenants cost a server: its start and memory, a request, an admin change, a page of a list.

    bench/many_tenants.py REALM MODEL.gguf [TENANTS KEYS_AND_PROGRAMS]

Fills a data folder, the rows written straight into realm.db since each made by itself would take a commit, and
serves it; a line of JSON each for one tenant and for so many (default 5000 1000). All programs are one module. About
fifteen seconds. Needs httpx."""
import json
import os
import pathlib
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import httpx

PROGRAM = """(module (import "realm" "respond_text" (func $say (param i32 i32) (result i32))) (memory (export "memory") 1)
  (data (i32.const 0) "hi") (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32) (call $say (i32.const 0) (i32.const 2))))"""


def fill(path, n_tenants, n_more):
    db = sqlite3.connect(path)
    settings = db.execute("SELECT settings FROM tenants").fetchone()[0]
    version = db.execute("SELECT hash, size, created_ms, note FROM versions").fetchone()
    route = db.execute("SELECT at_ms, most, newest, shares FROM routes").fetchone()
    db.executemany("INSERT INTO tenants(name, created_ms, revision, settings) VALUES(?, 1, 1, ?)",
                   [(f"t{i:05}", settings) for i in range(n_tenants)])
    for number, in db.execute("SELECT number FROM tenants WHERE name LIKE 't_____' ORDER BY number LIMIT ?", (n_more,)).fetchall():
        db.execute("INSERT INTO keys(id, tenant, name, scopes, created_ms, expires_ms, salt, hash) VALUES(?, ?, '', 'inference', 1, "
                   "0, ?, ?)", (f"K{number:011}", number, os.urandom(16), os.urandom(32)))
        db.execute("INSERT INTO versions(tenant, name, version, hash, size, created_ms, note) VALUES(?, 'hi', 1, ?, ?, ?, ?)",
                   (number, *version))
        db.execute("INSERT INTO routes(tenant, name, at_ms, most, newest, shares) VALUES(?, 'hi', ?, ?, ?, ?)", (number, *route))
    db.execute("UPDATE changes SET generation = generation + 1")
    db.commit()
    db.close()


def mean_ms(count, call):
    began = time.monotonic()
    for i in range(count):
        call(i).raise_for_status()
    return round((time.monotonic() - began) / count * 1e3, 2)


def measure(realm, model, n_tenants, n_more, folder):
    data = folder / f"data-{n_tenants}"
    env = {**os.environ, "REALM_DATA": str(data)}

    def command(*arguments):
        return subprocess.run([realm, *map(str, arguments)], capture_output=True, text=True, env=env, check=True).stdout.strip()

    module = folder / "hi.wat"
    module.write_text(PROGRAM)
    command("tenant", "create", "first")
    key, admin = command("key", "create", "--tenant", "first"), command("key", "create", "--admin")
    command("deploy", module, "--tenant", "first", "--name", "hi")
    fill(data / "realm.db", n_tenants, n_more)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([realm, "serve", "--model", f"m={model}", "--kv-memory", "64m", "--port", str(port)],
                                  env=env, stdout=log, stderr=log)
    try:
        while server.poll() is None:
            try:
                if httpx.get(url + "/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.01)
        start_s = round(time.monotonic() - began, 2)
        resident = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{server.pid}/status").read_text())[1]) >> 10
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as tenant, \
                httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"}) as node:
            print(json.dumps({
                "tenants": n_tenants, "keys_and_programs": n_more, "start_s": start_s, "resident_mib": resident,
                "request_ms": mean_ms(500, lambda i: tenant.get("/v1/models")),
                "change_ms": mean_ms(30, lambda i: node.patch("/admin/v1/tenants/first", json={"requests_per_minute": i})),
                "page_ms": mean_ms(10, lambda i: node.get("/admin/v1/tenants?limit=100"))}), flush=True)
    finally:
        server.terminate()
        server.wait(30)


def main():
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    many = [int(n) for n in sys.argv[3:]] or [5000, 1000]
    with tempfile.TemporaryDirectory() as folder:
        for n_tenants, n_more in ((1, 1), many):
            measure(sys.argv[1], sys.argv[2], n_tenants, n_more, pathlib.Path(folder))


if __name__ == "__main__":
    main()
