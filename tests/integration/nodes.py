"""A node with tenants for tests: a data folder, `realm serve` on it, keys, and small programs in text form."""
import contextlib
import os
import signal
import subprocess

import httpx
import openai

from serving import Serving


def program(imports, data, body, memory=1):
    """A module whose realm_handle is body; data lies at 0."""
    return f"""(module {imports}
      (memory (export "memory") {memory})
      (data (i32.const 0) "{data}")
      (func (export "realm_abi") (result i32) (i32.const 1))
      (func (export "realm_handle") (result i32) (local $size i32) {body}))"""


SAY = '(import "realm" "respond_text" (func $say (param i32 i32) (result i32)))'
STATE = ('(import "realm" "state_get" (func $get (param i32 i32 i32 i32) (result i32)))'
         '(import "realm" "state_put" (func $put (param i32 i32 i32 i32) (result i32)))')
READ = '(import "realm" "request_read" (func $read (param i32 i32 i32) (result i32)))'
CALL = '(import "realm" "call" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))'


def says(word):
    """Answers with a word."""
    return program(SAY, word, f"(call $say (i32.const 0) (i32.const {len(word)}))")


# Answers with what the state holds under "k", or nothing.
RECALLS = program(SAY + STATE, "k", """
    (local.set $size (call $get (i32.const 0) (i32.const 1) (i32.const 1024) (i32.const 4096)))
    (if (i32.lt_s (local.get $size) (i32.const 0)) (then (return (local.get $size))))
    (call $say (i32.const 1024) (local.get $size))""")

# Keeps the request's body under "k".
KEEPS = program(SAY + STATE + READ, "k", """
    (local.set $size (call $read (i32.const 0) (i32.const 1024) (i32.const 4096)))
    (call $put (i32.const 0) (i32.const 1) (i32.const 1024) (local.get $size))""")

SPINS = program("", "", "(loop $on (br $on)) (i32.const 0)")


class Node:
    """Commands on a data folder, and the servers that were started on it."""

    def __init__(self, realm, folder, model):
        self.realm, self.folder, self.model = realm, folder, model
        self.server = None

    def __call__(self, *arguments, check=True, stdin=None):
        done = subprocess.run([str(self.realm), *map(str, arguments)], capture_output=True, timeout=120,
                              input=stdin, env={**os.environ, "REALM_DATA": str(self.folder)})
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip() if check else done

    def key(self, tenant, *more):
        return self("key", "create", *(("--tenant", tenant) if tenant else ("--admin",)), *more)

    def tenant(self, name, *settings, programs=None):
        """A new tenant's key. Who sees the key sees the programs too: they are deployed before."""
        self("tenant", "create", name, *settings)
        for program, text in (programs or {}).items():
            self.deploy(name, program, text)
        return self.key(name)

    def deploy(self, tenant, name, text, *more):
        path = self.folder.parent / f"{tenant}-{name}.wat"
        path.write_text(text)
        # Not tried: many of these trap, spin or fail on purpose.
        return self("deploy", path, "--tenant", tenant, "--name", name, "--smoke", "none", *more)

    def start(self, *arguments):
        self.server = Serving(self.realm, "--model", f"smol={self.model}", "--kv-memory", "512m", "--data", self.folder,
                              *arguments)
        return self.server

    def kill(self):
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()

    def client(self, key, **more):
        return openai.OpenAI(base_url=self.server.url + "/v1", api_key=key, **{"max_retries": 0, **more})

    def http(self, key=None, **more):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=120, **more)

    def usage(self, *arguments):
        import json
        return json.loads(self("usage", "--format", "json", *arguments))


@contextlib.contextmanager
def node(realm, folder, model):
    n = Node(realm, folder, model)
    try:
        yield n
    finally:
        if n.server and n.server.process.poll() is None:
            n.server.process.kill()
        if n.server:
            n.server.process.wait()
            n.server.log.close()


def eventually(condition, seconds=60):
    """What the condition gives once it is true; a change reaches a server within a quarter of a second."""
    import time
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return value
