"""A running `realm serve` for tests: starts it on a free port, waits for it, ends it."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading

import httpx


class Serving:
    def __init__(self, realm, *arguments, env=None):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str(realm), "serve", "--port", "0", *map(str, arguments)],
                                        stdout=subprocess.PIPE, stderr=self.log,
                                        env={**os.environ, **(env or {})})
        lines = []
        for line in self.process.stdout:
            lines.append(line.decode())
            found = re.search(r"serves at (https?)://\[?([^\]]*?)\]?:(\d+)\n", lines[-1])
            if found:
                break
        else:
            self.process.wait()
            raise AssertionError(f"the server did not start: {self.read_log()}")
        self.scheme, self.host, self.port = found[1], found[2], int(found[3])
        self.url = f"{self.scheme}://{self.host}:{self.port}"
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def read_log(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def raw(self, timeout=60):
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def ask(self, data, timeout=60):
        """Sends bytes and returns all that comes back until the server closes or says nothing for a while."""
        with self.raw(timeout) as s:
            s.sendall(data)
            answer = b""
            with contextlib.suppress(socket.timeout, ConnectionResetError):
                while part := s.recv(65536):
                    answer += part
            return answer

    def metric(self, name, key=None):
        """The sum of a family's values."""
        answer = httpx.get(self.url + "/metrics", verify=False, headers={"authorization": f"Bearer {key}"} if key else {})
        text = answer.raise_for_status().text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if re.match(name + r"[{ ]", line))

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(realm, *arguments, env=None):
    server = Serving(realm, *arguments, env=env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.log.close()
