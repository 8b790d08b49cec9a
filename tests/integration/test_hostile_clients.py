"""Clients of ill will against `realm serve`: whatever they do, the server's memory stays bounded, what it tells them is
clear where there is something to tell, and a neighbour gets the same answer as without them. Loopback only; bounded by
counts, not by speed."""
import contextlib
import json
import pathlib
import socket
import struct
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from serving import serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server(realm, smollm2):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "112m", "--max-connections", "400") as s:
        s.answer = answer(s)
        s.most = resident(s) + (112 + 48) * MEBIBYTE  # pages of keys and values become resident with their first use
        yield s
        assert s.process.poll() is None, s.read_log()


def answer(server):
    body = {"model": "smol", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    done = httpx.post(server.url + "/v1/completions", json=body, timeout=120)
    assert done.status_code == 200, done.text
    return done.json()["choices"][0]["text"]


def resident(server):
    for line in pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10


@pytest.fixture(autouse=True)
def unharmed(server):
    """After each: the neighbour's answer, no session that runs, and hardly more memory."""
    yield
    assert answer(server) == server.answer
    end = time.monotonic() + 60
    while server.metric("realm_engine_sessions_running"):
        assert time.monotonic() < end, "something still runs"
        time.sleep(0.05)
    assert resident(server) < server.most


def send_all(s, data, times=1):
    """Sends until the server has had enough; returns what it said."""
    s.settimeout(60)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(times):
            s.sendall(data)
    return hear_all(s)


def hear_all(s):
    said = b""
    with contextlib.suppress(ConnectionResetError, socket.timeout):
        while part := s.recv(65536):
            said += part
    return said


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def goaway(said):
    """The code of the GOAWAY among an HTTP/2 server's frames."""
    while len(said) >= 9:
        size = int.from_bytes(said[:3], "big")
        if said[3] == 7:
            return int.from_bytes(said[13:17], "big")
        said = said[9 + size:]
    return None


# :method GET, :scheme http, :path /, of HPACK's static table
GET = b"\x82\x86\x84\x41\x01x"


# ---- too slow ------------------------------------------------------------------------------------------


def http2(server):
    c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    c.initiate_connection()
    return c, server.raw(120)


def head(method, path):
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]


def read_http2(c, s, seen):
    s.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for event in c.receive_data(s.recv(1 << 20)):
            if isinstance(event, h2.events.ResponseReceived):
                seen.setdefault(event.stream_id, []).append(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.StreamReset):
                seen.setdefault(event.stream_id, []).append(f"reset {int(event.error_code)}")
            elif isinstance(event, h2.events.DataReceived):
                c.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                seen["data"] = seen.get("data", 0) + 1
            elif isinstance(event, h2.events.StreamEnded):
                seen["ended"] = event.stream_id
    s.setblocking(True)
    s.sendall(c.data_to_send())


def is_closed(s):
    s.setblocking(False)
    try:
        while s.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_slow_clients_are_ended_and_their_neighbours_served(server):
    """All kinds at once, so that the limits of 20 and 30 s pass once."""
    trickles = []
    for i in range(30):
        trickles.append(server.raw())
        trickles[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        trickles.append(server.raw())
        trickles[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
    deaf = server.raw()  # asks for much and reads nothing
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            deaf.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    half = connect(server.url.replace("http", "ws") + "/v1/ws", compression=None, ping_interval=None)
    half.recv()
    half.socket.sendall(b"\x81\xfe\x10\x00\0\0\0\0{")
    c, s = http2(server)
    c.send_headers(1, [*head("POST", "/v1/completions"), ("content-length", "1000")])  # whose body does not come

    def generate(stream):
        c.send_headers(stream, head("POST", "/v1/completions"))
        c.send_data(stream, json.dumps({"model": "smol", "prompt": "A", "max_tokens": 4000,
                                        "ignore_eos": True, "stream": True}).encode(), end_stream=True)

    going = 3
    generate(going)
    shut, t = http2(server)  # whose windows are shut
    shut.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    shut.send_headers(1, head("GET", "/openapi.json"), end_stream=True)
    stalled, closed_window, data_at_refusal = {}, {}, 0
    s.sendall(c.data_to_send()), t.sendall(shut.data_to_send())
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for one in trickles:
            with contextlib.suppress(OSError):
                one.setblocking(True)
                one.send(b"x")
        assert answer(server) == server.answer
        read_http2(c, s, stalled), read_http2(shut, t, closed_window)
        if stalled.get("ended") == going:  # on a fast machine before the limits have passed
            going += 2
            generate(going)
            s.sendall(c.data_to_send())
        if 1 in stalled and not data_at_refusal:
            data_at_refusal = stalled["data"]
        trickles = [one for one in trickles if not is_closed(one)]
        if not trickles and is_closed(deaf) and len(closed_window.get(1, [])) == 2 and \
                data_at_refusal and stalled["data"] > data_at_refusal + 10:
            break
        time.sleep(0.5)
    assert not trickles, "slow heads and bodies are ended"
    assert closed_window[1] == ["200", "reset 8"], "an answer that is not taken is ended for its stream"
    assert stalled[1][0] == "408", "a body that stands still is refused"
    assert stalled[3] == ["200"] and stalled["data"] > data_at_refusal + 10, "beside a stream that goes on"
    with pytest.raises(ConnectionClosed):
        half.recv(timeout=60)
    assert half.close_code == 1008
    s.close(), t.close()


def test_a_side_that_is_shut_cancels(server):
    body = json.dumps({"model": "smol", "prompt": "A", "max_tokens": 4000, "ignore_eos": True, "stream": True})
    for _ in range(10):
        with server.raw(60) as s:
            s.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            assert s.recv(100).startswith(b"HTTP/1.1 200")
            s.shutdown(socket.SHUT_WR)
            hear_all(s)


# ---- too large -----------------------------------------------------------------------------------------


def test_a_gigabyte_is_refused_by_its_length_or_where_it_passes_the_limit(server):
    with server.raw(60) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        assert hear_all(s).startswith(b"HTTP/1.1 413")
    with server.raw(60) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * MEBIBYTE + b"\r\n"
        said = send_all(s, chunk, 1024)
        assert not said or said.startswith(b"HTTP/1.1 413")
    c, s = http2(server)
    c.send_headers(1, head("POST", "/v1/chat/completions"))
    seen, sent = {}, 0
    while 1 not in seen and sent < 1 << 30:
        room = min(c.local_flow_control_window(1), c.max_outbound_frame_size)
        if room:
            c.send_data(1, b" " * room)
            sent += room
        read_http2(c, s, seen)
    assert seen[1][0] == "413" and sent <= 20 * MEBIBYTE
    s.close()


@pytest.mark.parametrize("text", ["[" * 1000000, '{"a":' * 200000, '{"messages":' + "[" * 500000 + "]" * 500000 + "}"])
def test_deep_json_is_an_error(server, text):
    told = httpx.post(server.url + "/v1/chat/completions", content=text, headers={"content-type": "application/json"})
    assert told.status_code == 400 and told.json()["error"]["code"] == "invalid_json"
    with connect(server.url.replace("http", "ws") + "/v1/ws", compression=None) as w:
        w.recv()
        w.send('{"type":"chat","id":"a","body":' + text + "}")
        assert json.loads(w.recv())["error"]["code"] == "invalid_json"
        w.send(text)
        assert json.loads(w.recv())["error"]["code"] == "invalid_json"


def test_floods_of_headers_are_refused(server):
    many = b"".join(b"x-%d: y\r\n" % i for i in range(100000))
    for flood in (many, b"x: " + b"y" * (8 * MEBIBYTE)):
        with server.raw(60) as s:
            said = send_all(s, b"GET / HTTP/1.1\r\nHost: x\r\n" + flood)
            assert not said or said.startswith(b"HTTP/1.1 431")
    # HTTP/2: an index of one byte stands for a header of 4,000 that was sent once
    large = b"\x40\x01a\x7f\xa1\x1e" + b"y" * 4000
    with server.raw(60) as s:
        s.sendall(PREFACE + frame(4, 0, 0) + frame(1, 5, 1, GET + large))
        said = send_all(s, frame(1, 5, 3, GET + b"\xbf" * 16000) + frame(7, 0, 0, bytes(8)))
    assert b"431" in said or goaway(said) is not None


def test_continuation_without_end_ends_the_connection(server):
    with server.raw(60) as s:
        s.sendall(PREFACE + frame(4, 0, 0) + frame(1, 1, 1, GET))
        said = send_all(s, frame(9, 0, 1, b"\x00\x01a\x01b" * 1000) * 10, 2000)
    assert not said or goaway(said) is not None
    with server.raw(60) as s:
        s.sendall(PREFACE + frame(4, 0, 0) + frame(1, 1, 1, GET))
        said = send_all(s, frame(9, 0, 1) * 1000, 1000)
    assert not said or goaway(said) is not None


# ---- too often -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resets", "pings", "settings", "priorities", "empty data"])
def test_frames_that_cost_nothing_are_too_many_at_last(server, name):
    once = {"pings": frame(6, 0, 0, bytes(8)), "settings": frame(4, 0, 0), "priorities": frame(2, 0, 1, bytes(4) + b"\x10"),
            "empty data": frame(0, 0, 1)}
    with server.raw(60) as s:
        s.sendall(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, b"\x83\x86\x84\x41\x01x"))
        if name == "resets":
            flood = b"".join(frame(1, 5, id, GET) + frame(3, 0, id, bytes(4)) for id in range(3, 40003, 2))
        else:
            flood = once[name] * 20000
        said = send_all(s, flood)
    assert not said or goaway(said) == 11, "ENHANCE_YOUR_CALM"


def test_a_flood_of_pings_ends_a_socket(server):
    with connect(server.url.replace("http", "ws") + "/v1/ws") as w:
        w.recv()
        with contextlib.suppress(OSError):
            w.socket.sendall(b"\x89\xfd\0\0\0\0" + b"p" * 125 + (b"\x89\x80\0\0\0\0" * 20000))
        with pytest.raises(ConnectionClosed):
            while True:
                w.recv(timeout=60)
        assert w.close_code in (1006, 1008)


def test_more_connections_than_the_limit_are_told_so(server):
    held = [server.raw() for _ in range(400)]
    try:
        with server.raw() as s:
            said = hear_all(s)
        assert said.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in said
        assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "too_many_connections"
    finally:
        for s in held:
            s.close()
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(server.url + "/health").status_code == 200:
                break
        assert time.monotonic() < end


# ---- too clever ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_head", [
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\tchunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\nabcd",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n\r\nabcd",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nx",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\n0\n\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
])
def test_what_hides_a_second_request_is_refused(server, request_head):
    said = server.ask(request_head + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n", timeout=60)
    assert said.count(b"HTTP/1.1 ") == 1 and said[9:12] in (b"400", b"501"), said
    assert b'"name":"realm"' not in said


def test_what_is_no_utf8_is_refused_and_never_echoed(server):
    for body in (b'{"model":"smol","prompt":"\xff"}', b'{"model":"\xed\xa0\x80","prompt":"x"}', b'\xfe{"model":1}'):
        told = httpx.post(server.url + "/v1/completions", content=body, headers={"content-type": "application/json"})
        assert told.status_code == 400 and told.json()["error"]["code"] == "invalid_json"
    for path in (b"/v1/programs/%ff%fe", b"/v1/models/\xff", b"/v1/models/%ed%a0%80"):
        said = server.ask(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", timeout=60)
        said.split(b"\r\n\r\n", 1)[1].decode("utf-8")
        assert said[9:12] in (b"400", b"404", b"405"), said
