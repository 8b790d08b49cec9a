#!/usr/bin/env python3
"""What thousands of idle clients cost `realm serve`, and one that generates beside them.

    bench/connections.py MODEL [--connections 5000] [--kind websocket|stream|both] [--realm build/release/realm]

Opens so many clients, each of which has had a streamed answer of one token and then keeps its connection: WebSockets,
HTTP/1 connections whose event stream has ended, or half of each. Prints the server's resident memory for each and the speed
of one stream without and with them, in turns (they answer pings; nothing else is said). Standard library alone."""
import argparse
import json
import os
import pathlib
import re
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
import zlib

HANDSHAKE = (b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
             b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
             b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")


def resident(process):
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10


def frame(payload, first=0x81):
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload


def listen(s, until):
    said = b""
    while until not in said:
        part = s.recv(65536)
        if not part:
            raise SystemExit(f"the server ended a connection: {said!r}")
        said += part
    return said


def listen_to_frames(s, said, until):
    """Inflates what comes until a message holds `until`."""
    unpack = zlib.decompressobj(wbits=-15)
    while True:
        while len(said) >= 2 and ((size := said[1]) < 126 or len(said) >= 4):
            at = 2 if size < 126 else 4
            size = size if size < 126 else int.from_bytes(said[2:4], "big")
            if len(said) < at + size:
                break
            payload = said[at:at + size]
            if said[0] & 0x40:
                payload = unpack.decompress(payload + b"\0\0\xff\xff")
            if until in payload:
                return
            said = said[at + size:]
        said += s.recv(65536)


def open_one(address, kind):
    """A connection whose request has been answered."""
    s = socket.create_connection(address, timeout=120)
    body = {"model": "m", "prompt": "A", "max_tokens": 1, "stream": True}
    if kind == "websocket":
        s.sendall(HANDSHAKE + frame(json.dumps({"type": "completion", "id": "a", "body": body}).encode()))
        listen_to_frames(s, listen(s, b"\r\n\r\n").split(b"\r\n\r\n", 1)[1], b'"type":"done"')
    else:
        text = json.dumps(body)
        s.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        listen(s, b"\r\n0\r\n\r\n")
    s.setblocking(False)
    return s


def answer_pings(selector):
    for key, _ in selector.select(0):
        data = key.fileobj.recv(65536)
        if not data:
            raise SystemExit("the server ended an idle connection")
        if data[0] == 0x89:
            key.fileobj.send(frame(b"", 0x8A))


def speed(url, tokens):
    body = {"model": "m", "prompt": "A", "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
    times = []
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
    return (len(times) - 1) / (times[-1] - times[0])


def serve(realm, model, most):
    process = subprocess.Popen([realm, "serve", "--model", f"m={model}", "--port", "0", "--kv-memory", "128m",
                                "--max-connections", str(most)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        found = re.search(rb"serves at (http://\S+:(\d+))\n", line)
        if found:
            return process, found[1].decode(), ("127.0.0.1", int(found[2]))
    raise SystemExit("the server did not start")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--kind", choices=["websocket", "stream", "both"], default="both")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--realm", default=os.environ.get("REALM", "build/release/realm"))
    options = parser.parse_args()
    n = options.connections
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, n + 100) if most > 0 else n + 100, most))
    process, url, address = serve(options.realm, options.model, n + 100)
    try:
        kinds = ["websocket", "stream"] if options.kind == "both" else [options.kind]
        for kind in kinds * 8:
            open_one(address, kind).close()
        alone = [speed(url, options.tokens) for _ in range(options.turns)]
        before = resident(process)
        selector = selectors.DefaultSelector()
        started = time.monotonic()
        for i in range(n):
            selector.register(open_one(address, kinds[i % len(kinds)]), selectors.EVENT_READ)
            if i % 200 == 0:
                answer_pings(selector)
        took = time.monotonic() - started
        after = resident(process)
        beside = []
        for _ in range(options.turns):
            beside.append(speed(url, options.tokens))
            answer_pings(selector)
        print(f"{n} idle ({options.kind}): {(after - before) / n / 1024:.1f} KiB each "
              f"({before >> 20} to {after >> 20} MiB), opened in {took:.1f} s")
        print(f"one stream: {statistics.median(alone):.1f} tokens/s alone, {statistics.median(beside):.1f} beside them "
              f"({statistics.median(beside) / statistics.median(alone):.3f})")
    finally:
        process.terminate()
        if process.wait(60):
            sys.exit("the server did not end well")


if __name__ == "__main__":
    main()
