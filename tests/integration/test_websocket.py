"""/v1/ws as clients see it: the `websockets` package, HTTP/2's tunnels, a browser, with and without keys."""
import base64
import json
import os
import shutil
import subprocess

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from nodes import eventually, node, says
from serving import serving

FRANCE = [{"role": "system", "content": "Answer in one short sentence."},
          {"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(realm, smollm2):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "512m", "--log-format", "json") as s:
        yield s
        assert s.process.poll() is None, s.read_log()


def open_socket(server, **more):
    return connect(server.url.replace("http", "ws") + "/v1/ws", **{"subprotocols": ["realm.v1"], **more})


def say(w, kind, id=None, **more):
    w.send(json.dumps({"type": kind, **({"id": id} if id else {}), **more}))


def hear(w):
    return json.loads(w.recv(timeout=60))


def chat(**more):
    return {"model": "smol", "messages": FRANCE, "temperature": 0, "max_tokens": 24, **more}


def test_a_chat_over_a_socket_says_what_it_says_over_http(server):
    whole = httpx.post(server.url + "/v1/chat/completions", json=chat(), timeout=60).json()
    with open_socket(server) as w:
        assert w.subprotocol == "realm.v1"
        assert hear(w)["type"] == "ready"
        say(w, "chat", "a", body=chat(stream_options={"include_usage": True}))
        text, usage, message = "", None, hear(w)
        while message["type"] == "delta":
            assert message["id"] == "a" and message["data"]["object"] == "chat.completion.chunk"
            for choice in message["data"]["choices"]:
                text += choice["delta"].get("content") or ""
            usage = message["data"].get("usage") or usage
            message = hear(w)
        assert message["type"] == "done" and message["headers"]["x-request-id"]
        assert text == whole["choices"][0]["message"]["content"]
        assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
        say(w, "chat", "a", body=chat(stream=False))
        message = hear(w)
        assert message["type"] == "done" and message["data"]["choices"][0]["message"]["content"] == text


def test_requests_of_one_socket_run_beside_each_other(server):
    with open_socket(server) as w:
        hear(w)
        for i in range(8):
            say(w, "completion", str(i), body={"model": "smol", "prompt": "Once upon a time", "temperature": 0,
                                               "max_tokens": 16})
        texts, order, ends = {str(i): "" for i in range(8)}, [], 0
        while ends < 8:
            message = hear(w)
            order.append(message["id"])
            ends += message["type"] == "done"
            if message["type"] == "delta":
                texts[message["id"]] += message["data"]["choices"][0]["text"]
        assert len(set(texts.values())) == 1 and texts["0"]
        assert order != sorted(order), "they took turns"


def test_cancelling_ends_one_and_frees_its_session(server):
    with open_socket(server) as w:
        hear(w)
        for id in "ab":
            say(w, "chat", id, body=chat(max_tokens=2000, ignore_eos=True))
        while (m := hear(w))["type"] != "delta" or m["id"] != "a":
            pass
        say(w, "cancel", "a")
        while (m := hear(w))["type"] == "delta":
            pass
        assert m == {"type": "cancelled", "id": "a"}
        assert [hear(w)["id"] for _ in range(5)] == ["b"] * 5, "the other one goes on"
    eventually(lambda: server.metric("realm_engine_sessions_running") == 0)


def test_errors_are_those_of_http_and_the_socket_lives_on(server):
    body = {"model": "nobody", "messages": FRANCE}
    over_http = httpx.post(server.url + "/v1/chat/completions", json=body).json()["error"]
    with open_socket(server) as w:
        hear(w)
        say(w, "chat", "a", body=body)
        m = hear(w)
        assert (m["type"], m["status"], m["error"]) == ("error", 404, over_http)
        w.send("{")
        m = hear(w)
        assert m["id"] is None and m["error"]["code"] == "invalid_json"
        say(w, "embeddings", "e", body={"model": "smol", "input": "hello"})
        assert len(hear(w)["data"]["data"][0]["embedding"]) > 0


def test_large_messages_pass_and_larger_ones_end_it(server):
    with open_socket(server, max_size=None) as w:
        hear(w)
        say(w, "chat", "a", body=chat(messages=[{"role": "user", "content": os.urandom(4 << 20).hex()}]))
        assert hear(w)["error"]["code"] == "too_large", "it reached the program's limit"
        with pytest.raises(ConnectionClosed):
            say(w, "chat", "b", body=os.urandom(9 << 20).hex())
            hear(w)
        assert w.close_code == 1009
    with open_socket(server) as w:  # what inflates out of nothing
        hear(w)
        with pytest.raises(ConnectionClosed):
            say(w, "chat", "a", body="0" * (4 << 20))
            hear(w)
        assert w.close_code == 1009


@pytest.mark.parametrize("headers, status", [
    ({"upgrade": "websocket", "sec-websocket-version": "8"}, 426),
    ({"upgrade": "websocket", "sec-websocket-key": "c2hvcnQ="}, 400),
    ({"upgrade": "websocket", "sec-websocket-protocol": "soap"}, 400),
    ({"upgrade": "websocket", "origin": "https://elsewhere.example"}, 403),
    ({"upgrade": "websocket", "origin": "null"}, 403),
    ({"upgrade": "websocket", "origin": "http://localhost.elsewhere.example"}, 403),
    ({"upgrade": "websocket", "origin": "http://127.0.0.1.elsewhere.example"}, 403),
    ({"upgrade": "websocket", "origin": "http://localhost:3000"}, 101),
    ({"upgrade": "websocket", "origin": "http://[::1]:3000"}, 101),
    ({"upgrade": "h2c"}, 426),
    ({}, 426),
])
def test_the_handshake_is_checked(server, headers, status):
    fields = {"connection": "Upgrade", "sec-websocket-version": "13",
              "sec-websocket-key": base64.b64encode(b"0123456789abcdef").decode(), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with server.raw() as s:
        s.sendall(f"GET /v1/ws HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        answer = s.recv(65536)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"sec-websocket-version: 13" in answer) == (status == 426)


def masked(payload, first=0x81):
    """A frame under a mask of zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload


def unmasked(data):
    """Opcodes and payloads of the frames."""
    while data:
        size, at = data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        yield data[0] & 15, data[at:at + size]
        data = data[at + size:]


def test_http2_carries_sockets_as_tunnels_beside_requests(server):
    c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    c.initiate_connection()
    c.send_headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/v1/ws"),
                       (":authority", "x"), ("sec-websocket-version", "13"), ("sec-websocket-protocol", "realm.v1")])
    question = {"type": "completion", "id": "a", "body": {"model": "smol", "prompt": "A", "max_tokens": 2}}
    c.send_data(1, masked(json.dumps(question).encode()))
    c.send_headers(3, [(":method", "GET"), (":scheme", "http"), (":path", "/health"), (":authority", "x")], end_stream=True)
    c.send_headers(5, [(":method", "CONNECT"), (":authority", "x:443")])
    heads, data, ended, said_goodbye = {}, b"", set(), False
    with server.raw(60) as s:
        while 1 not in ended:
            s.sendall(c.data_to_send())
            for event in c.receive_data(s.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    heads[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived) and event.stream_id == 1:
                    data += event.data
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    ended.add(event.stream_id)
            if b'"type":"done"' in data and not said_goodbye:
                said_goodbye = True
                c.send_data(1, masked(b"\x03\xe8", 0x88))
    assert heads[1][":status"] == "200" and heads[1]["sec-websocket-protocol"] == "realm.v1"
    assert heads[3][":status"] == "200" and heads[5][":status"] == "501"
    frames = list(unmasked(data))
    kinds = [json.loads(text)["type"] for opcode, text in frames if opcode == 1]
    assert kinds[0] == "ready" and kinds[-1] == "done" and "delta" in kinds
    assert frames[-1] == (8, b"\x03\xe8")


def test_draining_ends_sockets_when_their_requests_are_done(realm, smollm2):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "256m") as s, open_socket(s) as idle, \
            open_socket(s) as busy:
        hear(idle), hear(busy)
        say(busy, "completion", "a", body={"model": "smol", "prompt": "A", "max_tokens": 30, "ignore_eos": True})
        hear(busy)
        s.process.terminate()
        with pytest.raises(ConnectionClosed):
            idle.recv(timeout=30)
        assert idle.close_code == 1001
        kinds = []
        with pytest.raises(ConnectionClosed):
            while True:
                kinds.append(hear(busy)["type"])
        assert kinds[-1] == "done" and busy.close_code == 1001
        assert s.process.wait(30) == 0


@pytest.fixture(scope="module")
def tenants(realm, smollm2, tmp_path_factory):
    with node(realm, tmp_path_factory.mktemp("ws") / "data", smollm2) as n:
        n.keys = {name: n.tenant(name) for name in ("acme", "blue")}
        n.limited = n.tenant("small", "--requests-per-minute", "3")
        n.deploy("acme", "word", says("crane"))
        n.start()
        yield n


def call_word(w, id="p"):
    say(w, "program", id, name="word", body={})
    while (m := hear(w))["type"] == "delta":
        assert m["data"] == "crane"
    return m


def test_a_key_comes_as_header_subprotocol_or_first_message(tenants):
    key, url = tenants.keys["acme"], tenants.server.url.replace("http", "ws") + "/v1/ws"
    with connect(url, additional_headers={"authorization": f"Bearer {key}"}) as w:
        assert hear(w)["type"] == "ready" and call_word(w)["type"] == "done"
    with connect(url, subprotocols=["realm.v1", f"realm.key.{key}"], origin="https://any.example") as w:
        assert w.subprotocol == "realm.v1", "the key does not come back"
        assert hear(w)["type"] == "ready" and call_word(w)["type"] == "done"
    with connect(url, subprotocols=["realm.v1"]) as w:
        say(w, "auth", key=key)
        assert hear(w)["type"] == "ready" and call_word(w)["type"] == "done"
        say(w, "auth", key=tenants.keys["blue"])
        assert hear(w)["type"] == "ready"
        m = call_word(w)
        assert m["status"] == 404 and m["error"]["code"] == "program_not_found", "another tenant's does not exist"
    assert not any(key in line for line in tenants.server.read_log().splitlines())


def test_who_has_no_key_gets_nowhere(tenants):
    url = tenants.server.url.replace("http", "ws") + "/v1/ws"
    for more in ({"additional_headers": {"authorization": "Bearer nonsense"}},
                 {"subprotocols": ["realm.v1", "realm.key.nonsense"]}):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, **more)
        assert refused.value.response.status_code == 401
    for first in ({"type": "auth", "key": "nonsense"}, {"type": "chat", "id": "a", "body": {}}):
        with connect(url) as w:
            w.send(json.dumps(first))
            assert hear(w)["error"]["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed):
                hear(w)
            assert w.close_code == 1008


def test_each_request_of_a_socket_counts(tenants):
    url = tenants.server.url.replace("http", "ws") + "/v1/ws"
    with connect(url, additional_headers={"authorization": f"Bearer {tenants.limited}"}) as w:
        hear(w)
        ends = []
        for i in range(5):
            say(w, "completion", str(i), body={"model": "smol", "prompt": "A", "max_tokens": 1, "stream": False})
            ends.append(hear(w))
    assert [m["type"] for m in ends] == ["done"] * 3 + ["error"] * 2
    assert ends[2]["headers"]["x-ratelimit-remaining-requests"] == "0"
    assert ends[4]["status"] == 429 and int(ends[4]["headers"]["retry-after"]) > 0
    assert sum(row["requests"] for row in tenants.usage("--tenant", "small")) == 3


def test_a_revoked_key_ends_what_is_asked_next(tenants):
    key = tenants.key("blue")
    eventually(lambda: tenants.http(key).get("/v1/models").status_code == 200)
    with connect(tenants.server.url.replace("http", "ws") + "/v1/ws",
                 additional_headers={"authorization": f"Bearer {key}"}) as w:
        hear(w)
        tenants("key", "revoke", key.split("_")[1])

        def refused():
            say(w, "embeddings", "e", body={"model": "smol", "input": "x"})
            return hear(w).get("status") == 401

        eventually(refused)


BROWSER = """
const { chromium } = require(process.argv[2]);
(async () => {
  const browser = await chromium.launch({ executablePath: process.argv[3], args: ['--no-sandbox'] });
  const page = await browser.newPage();
  await page.goto(process.argv[4] + '/health');
  const told = await page.evaluate(async () => {
    const body = { model: 'smol', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 8, temperature: 0 };
    const answer = await fetch('/v1/chat/completions', { method: 'POST',
      headers: { 'content-type': 'application/json' }, body: JSON.stringify({ ...body, stream: true }) });
    const events = (await answer.text()).split('\\n\\n').filter(e => e.startsWith('data: {'));
    const text = list => list.map(d => d.choices[0].delta.content || '').join('');
    const fetched = text(events.map(e => JSON.parse(e.slice(6))));
    const w = new WebSocket(location.origin.replace('http', 'ws') + '/v1/ws', ['realm.v1']);
    const deltas = [], end = await new Promise(resolve => {
      w.onmessage = ({ data }) => {
        const m = JSON.parse(data);
        if (m.type === 'ready') w.send(JSON.stringify({ type: 'chat', id: 'a', body }));
        else if (m.type === 'delta') deltas.push(m.data);
        else resolve(m.type);
      };
      w.onclose = e => resolve('closed ' + e.code);
    });
    const closed = new Promise(resolve => { w.onclose = e => resolve(e.code); });
    w.close(1000);
    return { fetched, heard: text(deltas), end, extensions: w.extensions, protocol: w.protocol, closed: await closed };
  });
  console.log(JSON.stringify(told));
  await browser.close();
})().catch(e => { console.error(e); process.exit(1); });
"""


def test_a_browser_fetches_and_opens_a_socket(server, tmp_path):
    """Needs Chromium and Playwright's core package: REALM_PLAYWRIGHT is the folder node_modules/playwright-core."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    package = os.environ.get("REALM_PLAYWRIGHT")
    if not chromium or not package or not shutil.which("node"):
        pytest.skip("no browser: Chromium, node and REALM_PLAYWRIGHT (playwright-core's folder) are needed")
    script = tmp_path / "browser.js"
    script.write_text(BROWSER)
    done = subprocess.run(["node", script, package, chromium, server.url], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["end"] == "done" and told["heard"] == told["fetched"] != ""
    assert told["protocol"] == "realm.v1" and told["extensions"].startswith("permessage-deflate")
    assert told["closed"] == 1000
