"""Traces over OTLP: what a collector of its own hears of requests, decoded with OpenTelemetry's protobuf package, and
what a server does when the collector is in trouble. Times are compared with each other and with this process's clock,
never with how long something ought to take."""
import contextlib
import importlib
import json
import pathlib
import re
import signal
import socket
import sys
import threading
import time

import grpc
import httpx
import pytest
from grpc_tools import protoc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from websockets.sync.client import connect

import nodes
from collector import Collector, under
from nodes import eventually
from serving import Serving, serving

SECRET = "the colour of the vault is heliotrope"
TRAPS = nodes.program("", "", "unreachable")
CALLER = "00f067aa0ba902b7"

# Two sessions in turns: the first reads eight tokens and generates two, the second reads eight and generates one, the
# first reads eight more and generates one.
TWO_SESSIONS = """(module
  (import "realm" "model_open" (func $model (param i32 i32) (result i32)))
  (import "realm" "session_open" (func $open (param i32 i32 i32) (result i32)))
  (import "realm" "feed" (func $feed (param i32 i32 i32) (result i32)))
  (import "realm" "step" (func $step (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func $read (param $s i32) (local $i i32)
    (loop $on
      (i32.store (i32.add (i32.const 512) (i32.mul (local.get $i) (i32.const 4))) (i32.add (local.get $i) (i32.const 70)))
      (br_if $on (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 8))))
    (if (i32.lt_s (call $feed (local.get $s) (i32.const 512) (i32.const 8)) (i32.const 0)) (then unreachable)))
  (func $one (param $s i32)
    (if (i32.lt_s (call $step (local.get $s) (i32.const -1)) (i32.const 0)) (then unreachable)))
  (func (export "realm_handle") (result i32) (local $a i32) (local $b i32)
    (local.set $a (call $open (call $model (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
    (local.set $b (call $open (call $model (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
    (call $read (local.get $a)) (call $one (local.get $a)) (call $one (local.get $a))
    (call $read (local.get $b)) (call $one (local.get $b))
    (call $read (local.get $a)) (call $one (local.get $a))
    (i32.const 0)))"""

made = iter(range(1, 1 << 30))


def new_trace():
    return f"{next(made):032x}"


def parent(trace, flags="01"):
    return {"traceparent": f"00-{trace}-{CALLER}-{flags}"}


def settings(collector, **more):
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector if isinstance(collector, str) else collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "20", **more}


@pytest.fixture(scope="module")
def heard():
    with Collector() as c:
        yield c


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory, heard):
    """A node with the tenants acme and bolt that exports what it does to `heard`."""
    with nodes.node(realm, tmp_path_factory.mktemp("traced") / "data", smollm2) as n:
        n.acme, n.bolt = n.tenant("acme"), n.tenant("bolt", "--requests-per-minute", "1")
        n.deploy("acme", "traps", TRAPS)
        n.deploy("acme", "two", TWO_SESSIONS)
        n.server = Serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "512m", "--data", n.folder,
                           "--log-format", "json", env=settings(heard, OTEL_SERVICE_NAME="gatehouse",
                                                                OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=te%20st"))
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


@pytest.fixture(scope="module")
def plain(realm, smollm2):
    """A server of one tenant for tests of how spans travel; started anew with each call."""
    def start(collector, *arguments, **env):
        return serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m", *arguments,
                       env=settings(collector, **env) if collector else env)
    return start


def body(**more):
    return {"model": "smol", "messages": [{"role": "user", "content": SECRET + ". Say hello. " * 20}], "temperature": 0,
            "max_tokens": 6, "ignore_eos": True, **more}


def ask(http, trace=None, flags="01", **more):
    return http.post("/v1/chat/completions", json=body(**more), headers=parent(trace, flags) if trace else {})


def one(spans, name):
    found = [s for s in spans if s.name == name]
    assert len(found) == 1, f"{name} of {spans}"
    return found[0]


def check_times(spans):
    """Every span inside of its parent."""
    by_id = {s.id: s for s in spans}
    assert len(by_id) == len(spans)
    for s in spans:
        assert s.start <= s.end, s
        if s.parent in by_id:
            assert by_id[s.parent].start <= s.start and s.end <= by_id[s.parent].end, (s, by_id[s.parent])


def check_phases(run, spans, sessions):
    """queue, prefill and decode of each session follow each other without a gap."""
    for session in sessions:
        phases = [s for s in under(spans, run) if s["realm.session"] == session]
        assert [p.name for p in phases] == ["queue", "prefill", "decode"]
        assert phases[0].end == phases[1].start and phases[1].end == phases[2].start


# ---- what is told of a request ---------------------------------------------------------------------------


def test_a_request_is_a_tree_of_spans_with_true_times(node, heard):
    trace, before = new_trace(), time.time_ns()
    with node.http(node.acme) as http:
        answer = ask(http, trace)
    after, usage = time.time_ns(), answer.json()["usage"]
    spans = heard.trace(trace)
    root = one(spans, "POST /v1/chat/completions")
    assert (root.kind, root.parent, root.failed, root.flags) == ("server", CALLER, False, 0x301)
    assert root.attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "url.path": "/v1/chat/completions",
        "url.scheme": "http", "http.response.status_code": 200, "network.protocol.name": "http",
        "network.protocol.version": "1.1", "realm.request_id": answer.headers["x-request-id"], "realm.tenant": "acme"}
    asked = one(spans, "chat smol")
    assert (asked.kind, asked.parent, asked.failed, asked.flags) == ("internal", root.id, False, 0x101)
    assert asked.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "realm", "gen_ai.request.model": "smol",
        "gen_ai.response.model": "smol", "gen_ai.request.max_tokens": 6, "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "realm.tenant": "acme", "realm.program": "chat"}
    run = one(spans, "sandbox")
    assert run.parent == asked.id and run["realm.program"] == "chat" and run["realm.choice"] == 0
    assert 0 < run["realm.sandbox.start_seconds"] * 1e9 <= run.end - run.start and run["realm.sandbox.cpu_seconds"] > 0
    check_times(spans)
    check_phases(run, spans, [1])
    assert one(spans, "prefill")["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert one(spans, "decode")["gen_ai.usage.output_tokens"] == 6
    assert len(spans) == 6
    # A clock of the wall: the same as ours, up to its being set meanwhile.
    assert before - 10**9 <= root.start and root.end <= after + 10**9
    assert root.resource["service.name"] == "gatehouse" and root.resource["deployment.environment.name"] == "te st"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
                        root.resource["service.instance.id"])
    assert root.scope.name == "realm"
    line = next(l for l in node.server.read_log().splitlines() if answer.headers["x-request-id"] in l)
    assert json.loads(line)["trace"] == trace


def test_a_cached_prompt_is_told(node, heard):
    with node.http(node.acme) as http:
        ask(http)
        trace = new_trace()
        cached = ask(http, trace).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert one(heard.trace(trace), "prefill")["gen_ai.usage.cache_read.input_tokens"] == cached > 0


def test_each_choice_is_a_run(node, heard):
    trace = new_trace()
    with node.http(node.acme) as http:
        assert len(ask(http, trace, n=3).json()["choices"]) == 3
    spans = heard.trace(trace)
    runs = under(spans, one(spans, "chat smol"), "sandbox")
    assert sorted(r["realm.choice"] for r in runs) == [0, 1, 2]
    for run in runs:
        check_phases(run, spans, [1])
    check_times(spans)
    asked = one(spans, "chat smol")
    assert asked["gen_ai.request.choice.count"] == 3 and asked["gen_ai.response.finish_reasons"] == ["length"] * 3
    assert asked["gen_ai.usage.output_tokens"] == 18


def test_a_stream_says_when_its_first_piece_came(node, heard):
    trace = new_trace()
    with node.http(node.acme) as http:
        assert "[DONE]" in ask(http, trace, stream=True).text
    spans = heard.trace(trace)
    asked, prefill = one(spans, "chat smol"), one(spans, "prefill")
    first = asked["gen_ai.response.time_to_first_chunk"] * 1e9
    assert asked["gen_ai.request.stream"] is True
    assert prefill.end - asked.start <= first + 1 and first - 1 <= asked.end - asked.start
    check_times(spans)


def test_each_prompt_of_each_session_has_its_phases(node, heard):
    trace = new_trace()
    with node.http(node.acme) as http:
        assert http.post("/v1/programs/two", headers=parent(trace)).status_code == 204
    spans = heard.trace(trace)
    assert one(spans, "invoke_workflow two")["realm.program"] == "two"
    run = one(spans, "sandbox")
    assert run["realm.program.version"] == 1
    found = [(s.name, s["realm.session"], s.get("gen_ai.usage.input_tokens"), s.get("gen_ai.usage.output_tokens"))
             for s in sorted(under(spans, run), key=lambda s: (s.start, s.end))]
    turn = lambda session, n: [("queue", session, None, None), ("prefill", session, 8, None), ("decode", session, None, n)]
    assert found == turn(1, 2) + turn(2, 1) + turn(1, 1)
    check_times(spans)


def test_other_requests_have_their_names(node, heard):
    with node.http(node.acme) as http:
        def told(method, path, **more):
            trace = new_trace()
            answer = http.request(method, path, headers=parent(trace), **more)
            return answer, heard.trace(trace)

        answer, spans = told("POST", "/v1/completions", json={"model": "smol", "prompt": "Once", "max_tokens": 1})
        assert answer.status_code == 200 and one(spans, "text_completion smol")["gen_ai.usage.output_tokens"] == 1
        answer, spans = told("POST", "/v1/embeddings", json={"model": "smol", "input": ["Once", "upon"]})
        assert answer.status_code == 200
        assert one(spans, "embeddings smol")["gen_ai.usage.input_tokens"] == answer.json()["usage"]["prompt_tokens"]
        assert {s.name for s in under(spans, one(spans, "sandbox"))} == {"queue", "prefill"}
        answer, spans = told("GET", "/v1/models/smol")
        assert answer.status_code == 200 and [s.name for s in spans] == ["GET /v1/models/*"]
        assert spans[0]["url.path"] == "/v1/models/smol"


def test_failures_are_told_where_they_happened(node, heard):
    with node.http(node.acme) as http:
        trace = new_trace()
        assert http.post("/v1/programs/traps", headers=parent(trace)).status_code == 500
        spans = heard.trace(trace)
        assert spans[0].failed and spans[0]["error.type"] == "500"
        for name in ("invoke_workflow traps", "sandbox"):
            assert one(spans, name).failed and one(spans, name)["error.type"] == "TRAPPED"
        trace = new_trace()
        assert ask(http, trace, model="none").status_code == 404
        (root,) = heard.trace(trace)
        assert root["http.response.status_code"] == 404 and not root.failed and not root.get("error.type")
        trace = new_trace()
        assert http.get(f"/nothing/{SECRET}", headers=parent(trace)).status_code == 404
        (root,) = heard.trace(trace)
        assert root.name == "GET" and not root.get("url.path") and not root.get("http.route")
        trace = new_trace()
        assert http.request("BREW", "/v1/models", headers=parent(trace)).status_code in (400, 405)
    with node.http("rk_nobody") as http:
        trace = new_trace()
        assert ask(http, trace).status_code == 401
        (root,) = heard.trace(trace)
        assert root["http.response.status_code"] == 401 and not root.get("realm.tenant")
    with node.http(node.bolt) as http:
        ask(http, max_tokens=1)
        trace = new_trace()
        assert ask(http, trace).status_code == 429
        (root,) = heard.trace(trace)
        assert root["realm.tenant"] == "bolt" and root["http.response.status_code"] == 429


def test_a_client_that_goes_is_told_as_cancelled(node, heard):
    trace = new_trace()
    with node.http(node.acme) as http:
        with http.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=4000),
                         headers=parent(trace)) as answer:
            next(answer.iter_lines())
    spans = heard.trace(trace)
    for name in ("POST /v1/chat/completions", "chat smol", "sandbox", "decode"):
        assert one(spans, name).failed and one(spans, name)["error.type"] == "cancelled", name


def test_nothing_that_was_said_leaves_the_machine(node, heard):
    """Neither prompts nor answers nor keys, wherever a client may put them."""
    trace = new_trace()
    with node.http(node.acme) as http:
        words = ask(http, trace, max_tokens=12).json()["choices"][0]["message"]["content"]
        http.get("/v1/models?key=" + SECRET.replace(" ", "+"), headers={"user-agent": SECRET, "cookie": SECRET})
        http.post("/v1/programs/two?x=" + SECRET.replace(" ", "%20"), content=SECRET, headers={"x-request-id": SECRET})
        http.get("/" + node.acme)
        last = new_trace()
        http.get("/v1/models", headers=parent(last))
    heard.trace(last)
    sent = b"".join(body for _, _, _, body, _ in heard.posts)
    assert len(words) > 8 and trace in {s.trace for s in heard.spans}
    for text in (SECRET, SECRET.replace(" ", "+"), SECRET.replace(" ", "%20"), "heliotrope", words, node.acme,
                 node.acme.split("_")[2], node.bolt):
        assert text.encode() not in sent, text
    assert b"gen_ai.usage.input_tokens" in sent


# ---- every protocol --------------------------------------------------------------------------------------


def test_http2_has_its_spans(node, heard):
    trace = new_trace()
    with httpx.Client(base_url=node.server.url, http1=False, http2=True, timeout=60,
                      headers={"authorization": f"Bearer {node.acme}"}) as http:
        assert ask(http, trace, stream=True).http_version == "HTTP/2"
    spans = heard.trace(trace)
    assert one(spans, "POST /v1/chat/completions")["network.protocol.version"] == "2" and one(spans, "decode")
    check_times(spans)


def test_requests_of_a_socket_have_their_spans(node, heard):
    shake, own = new_trace(), new_trace()
    with connect(node.server.url.replace("http", "ws") + "/v1/ws", subprotocols=["realm.v1"],
                 additional_headers={"authorization": f"Bearer {node.acme}", **parent(shake)}) as w:
        for id, more in (("a", {}), ("b", parent(own))):
            w.send(json.dumps({"type": "chat", "id": id, "body": body(), **more}))
            while json.loads(w.recv(timeout=60))["type"] != "done":
                pass
    for trace, count in ((shake, 2), (own, 1)):
        spans = heard.trace(trace, count)
        root = one(spans, "POST /v1/chat/completions")
        assert root.parent == CALLER and root["network.protocol.name"] == "websocket" and root["realm.tenant"] == "acme"
        assert one(spans, "decode")["gen_ai.usage.output_tokens"] == 6
    socket_span = one(heard.trace(shake, 2), "GET /v1/ws")
    assert socket_span["http.response.status_code"] == 101 and not socket_span.failed


def test_grpc_has_its_spans(node, heard, tmp_path):
    proto = pathlib.Path(__file__).resolve().parents[2] / "proto"
    assert protoc.main(["protoc", f"-I{proto}", f"--python_out={tmp_path}", "realm/v1/inference.proto"]) == 0
    sys.path.insert(0, str(tmp_path))
    try:
        pb = importlib.import_module("realm.v1.inference_pb2")
    finally:
        sys.path.remove(str(tmp_path))
    key = ("authorization", f"Bearer {node.acme}")
    with grpc.insecure_channel(f"{node.server.host}:{node.server.port}") as channel:
        call = channel.unary_stream("/realm.v1.Inference/Chat", request_serializer=pb.ChatRequest.SerializeToString,
                                    response_deserializer=pb.Piece.FromString)
        trace = new_trace()
        request = pb.ChatRequest(model="smol", messages=[pb.Message(role="user", content=SECRET)],
                                 sampling=pb.Sampling(max_tokens=4, ignore_eos=True))
        list(call(request, metadata=[key, *parent(trace).items()]))
        spans = heard.trace(trace)
        root = one(spans, "realm.v1.Inference/Chat")
        assert root.parent == CALLER and root.kind == "server" and not root.failed
        assert root["rpc.system.name"] == "grpc" and root["rpc.method"] == "realm.v1.Inference/Chat"
        assert root["rpc.status_code"] == "OK" and root["realm.tenant"] == "acme"
        assert one(spans, "chat smol").parent == root.id and one(spans, "decode")["gen_ai.usage.output_tokens"] == 4
        check_times(spans)
        trace = new_trace()
        request.model = "none"
        with pytest.raises(grpc.RpcError):
            list(call(request, metadata=[key, *parent(trace).items()]))
        (root,) = heard.trace(trace)
        assert root["rpc.status_code"] == "NOT_FOUND" and not root.failed


# ---- which requests are traced ---------------------------------------------------------------------------


def traces_of(plain, requests, **env):
    """Which of these (trace, flags or None for no caller) are exported, by a server with this environment."""
    with Collector() as c:
        with plain(c, **env) as s:
            for trace, flags in requests:
                httpx.get(s.url + "/v1/models", headers=parent(trace, flags) if flags else {})
            assert s.stop() == 0
        return [span.trace for span in c.spans]


LOW, HIGH = "f" * 16 + "0" * 15 + "1", "0" * 15 + "1" + "f" * 16  # the id's second half decides


def test_a_callers_decision_is_followed(plain):
    asked = [(LOW, "01"), (HIGH, "00"), (LOW, None)]
    traced = traces_of(plain, asked)
    assert len(traced) == 2 and traced[0] == LOW and traced[1] not in (LOW, HIGH), "traces without a caller are sampled"
    assert traces_of(plain, asked, OTEL_TRACES_SAMPLER="parentbased_always_off") == [LOW]
    assert traces_of(plain, asked, OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0") == [LOW]


def test_other_samplers_decide_themselves(plain):
    asked = [(LOW, "00"), (HIGH, "01"), (LOW, "01")]
    assert traces_of(plain, asked, OTEL_TRACES_SAMPLER="always_on") == [LOW, HIGH, LOW]
    assert traces_of(plain, asked, OTEL_TRACES_SAMPLER="always_off") == []
    assert traces_of(plain, asked, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5") == [LOW, LOW]


def test_probes_are_traced_for_their_callers_alone(plain):
    with Collector() as c:
        with plain(c, OTEL_TRACES_SAMPLER="always_on") as s:
            for path in ("/health", "/ready", "/metrics", "/version"):
                httpx.get(s.url + path)
                httpx.get(s.url + path, headers=parent(LOW, "00"))
            httpx.get(s.url + "/health", headers=parent(HIGH))
            s.stop()
        assert [(span.name, span.trace) for span in c.spans] == [("GET /health", HIGH)]


def test_tracestate_is_passed_on_and_a_wrong_traceparent_is_not(plain):
    with Collector() as c:
        with plain(c) as s:
            get = lambda *headers: httpx.get(s.url + "/v1/models", headers=list(headers))
            good = ("traceparent", f"00-{LOW}-{CALLER}-01")
            get(good, ("tracestate", "foo=1"), ("tracestate", "bar=2"))
            get(good, ("tracestate", "foo=1,BAR=2"))
            get(good, good)
            get(("traceparent", f"00-{LOW}-{CALLER}-01-more"), ("tracestate", "foo=1"))
            s.stop()
        assert [(x.state, x.trace == LOW, x.parent) for x in c.spans] == \
            [("foo=1,bar=2", True, CALLER), ("", True, CALLER), ("", False, ""), ("", False, "")]


# ---- a collector in trouble ------------------------------------------------------------------------------


def dropped(s, reason):
    found = re.search(rf'^realm_traces_dropped_total{{reason="{reason}"}} (\d+)$', httpx.get(s.url + "/metrics").text, re.M)
    return int(found[1])


@pytest.mark.parametrize("status, header", [(429, {"retry-after": "1"}), (503, {"retry-after": "1"}), (502, {}), (504, {})])
def test_what_a_collector_puts_off_comes_once_later(plain, status, header):
    with Collector() as c:
        c.script = [(status, header, b"")]
        with plain(c) as s:
            httpx.get(s.url + "/v1/models", headers=parent(LOW))
            c.wait(lambda c: c.spans)
            assert [p[4] for p in c.posts] == [status, 200] and c.posts[0][3] == c.posts[1][3]
            if header:
                assert c.posts[1][0] - c.posts[0][0] >= 1
            eventually(lambda: s.metric("realm_traces_exported_total") == 1, 60)
            assert s.metric("realm_traces_dropped_total") == 0
            assert f"the collector answered {status}" not in s.read_log(), "it was not lost"


def test_any_success_is_one(plain):
    with Collector() as c:
        c.script = [(202, {}, b"accepted"), (204, {}, b"")]
        with plain(c) as s:
            for i in range(2):
                httpx.get(s.url + "/v1/models", headers=parent(LOW))
                eventually(lambda: s.metric("realm_traces_exported_total") == i + 1, 60)
            assert s.metric("realm_traces_dropped_total") == 0 and len(c.posts) == 2


def test_what_a_collector_refuses_is_dropped_counted_and_told_once(plain):
    with Collector() as c:
        c.script = [(400, {}, b"no"), (403, {}, b"no")]
        with plain(c) as s:
            for i in range(2):
                httpx.get(s.url + "/v1/models", headers=parent(LOW))
                eventually(lambda: dropped(s, "failed") == i + 1, 60)
            httpx.get(s.url + "/v1/models", headers=parent(HIGH))
            c.wait(lambda c: c.spans)
            assert len(c.posts) == 3 and [x.trace for x in c.spans] == [HIGH]
            eventually(lambda: "spans are exported again" in s.read_log(), 60)
            assert s.read_log().count("not exported") == 1 and "the collector answered 400" in s.read_log()


def test_spans_that_a_collector_rejects_are_counted(plain):
    answer = trace_service_pb2.ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    answer.partial_success.error_message = "too old"
    with Collector() as c:
        c.script = [(200, {"content-type": "application/x-protobuf"}, answer.SerializeToString())]
        with plain(c) as s:
            httpx.get(s.url + "/v1/models", headers=parent(LOW))
            eventually(lambda: dropped(s, "failed") == 1, 60)
            assert s.metric("realm_traces_exported_total") == 0


def closes(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_breaks_is_tried_again(plain):
    with Collector() as c:
        c.script = [closes]
        with plain(c) as s:
            httpx.get(s.url + "/v1/models", headers=parent(LOW))
            c.wait(lambda c: c.spans)
            assert len(c.posts) == 2


def test_without_a_collector_requests_go_on_and_it_is_told_once(plain):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with plain(f"http://127.0.0.1:{nobody.getsockname()[1]}", OTEL_BSP_EXPORT_TIMEOUT="1") as s:
            for i in range(3):
                assert httpx.get(s.url + "/v1/models").status_code == 200
                eventually(lambda: dropped(s, "failed") == i + 1, 60)
            assert s.stop() == 0
            assert s.read_log().count("not exported") == 1


def test_a_slow_collector_costs_bounded_memory_and_no_request(plain):
    released = threading.Event()

    def slow(handler):
        released.wait(600)
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with Collector() as c:
        c.script = [slow]
        with plain(c, OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
                   OTEL_EXPORTER_OTLP_TIMEOUT="600000") as s:
            with httpx.Client(base_url=s.url, timeout=60) as http:
                http.get("/v1/models")
                c.wait(lambda c: c.posts)
                for _ in range(200):
                    assert http.get("/v1/models").status_code == 200
                eventually(lambda: dropped(s, "full") == 192, 60)  # the first is on its way, eight wait
                released.set()
                eventually(lambda: s.metric("realm_traces_exported_total") == 9, 60)
        assert len(c.spans) == 8 and len(c.posts) == 3


# ---- the end ---------------------------------------------------------------------------------------------


def test_what_is_left_at_the_end_is_sent(plain):
    with Collector() as c:
        with plain(c, OTEL_BSP_SCHEDULE_DELAY="3600000") as s:
            httpx.post(s.url + "/v1/chat/completions", json=body(), headers=parent(LOW), timeout=60)
            assert not c.posts
            assert s.stop() == 0
        assert one(c.spans, "decode")["gen_ai.usage.output_tokens"] == 6


def test_a_collector_that_hangs_does_not_keep_the_server(plain):
    with Collector() as c:
        c.script = [lambda handler: time.sleep(600)] * 4
        with plain(c, OTEL_EXPORTER_OTLP_TIMEOUT="600000") as s:
            httpx.get(s.url + "/v1/models")
            c.wait(lambda c: c.posts)
            httpx.get(s.url + "/v1/models")
            assert s.stop() == 0  # within its minute
            assert "the server stops" in s.read_log()


# ---- settings --------------------------------------------------------------------------------------------


def test_a_post_says_who_and_what_it_is(plain):
    with Collector() as c:
        with plain(c, OTEL_EXPORTER_OTLP_HEADERS="x-api-key=a%20b,x-other=2", OTEL_EXPORTER_OTLP_COMPRESSION="gzip") as s:
            httpx.get(s.url + "/v1/models", headers=parent(LOW))
            c.wait(lambda c: c.spans)
        _, path, headers, _, _ = c.posts[0]
        headers = {k.lower(): v for k, v in headers.items()}
        assert path == "/v1/traces" and headers["content-type"] == "application/x-protobuf"
        assert headers["x-api-key"] == "a b" and headers["x-other"] == "2" and headers["content-encoding"] == "gzip"
        assert headers["user-agent"].startswith("realm/") and "expect" not in headers
        assert c.spans[0].trace == LOW and c.spans[0].resource["service.name"] == "realm"


def test_flags_win_over_the_environment_and_that_over_the_file(plain, tmp_path):
    with contextlib.ExitStack() as stack:
        flag, own, otel, base, file = (stack.enter_context(Collector()) for _ in range(5))
        path = tmp_path / "realm.yaml"
        path.write_text(f"traces-endpoint: {file.url}\ntraces-header:\n  - x-from=file\n")
        steps = [(file, (), {}), (base, (), {"OTEL_EXPORTER_OTLP_ENDPOINT": base.url + "/in/"}),
                 (otel, (), {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": otel.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-from=otel"}),
                 (own, (), {"REALM_TRACES_ENDPOINT": own.url}), (flag, ("--traces-endpoint", flag.url + "/here"), {})]
        env = {}
        for c, arguments, more in steps:
            env |= more
            with plain(None, "--config", path, *arguments, **env) as s:
                httpx.get(s.url + "/v1/models")
                s.stop()
            assert len(c.spans) == 1
        paths = [c.posts[0][1] for c in (file, base, otel, own, flag)]
        assert paths == ["/v1/traces", "/in/v1/traces", "/", "/v1/traces", "/here"]
        assert [c.posts[0][2]["x-from"] for c in (file, otel, flag)] == ["file", "otel", "otel"]
        assert sum(len(c.posts) for c in (flag, own, otel, base, file)) == 5


def test_settings_that_change_hold_without_a_restart(plain, tmp_path):
    def switch(server, text):
        path.write_text(text)
        before = server.read_log().count('"reloaded"')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: server.read_log().count('"reloaded"') > before)

    with Collector() as first, Collector() as second:
        path = tmp_path / "realm.yaml"
        path.write_text("drain: 7\n")
        with plain(None, "--config", path, OTEL_BSP_SCHEDULE_DELAY="60000") as s, httpx.Client(base_url=s.url) as http:
            http.get("/v1/models")
            switch(s, f"traces-endpoint: {first.url}\n")
            http.get("/v1/models", headers=parent(LOW))
            switch(s, f"traces-endpoint: {second.url}\ntraces-header: [x-from=file]\n")
            first.wait(lambda c: c.spans)  # what waited for its minute goes before the collector is left
            http.get("/v1/models")
            switch(s, f"traces-endpoint: {second.url}\ntraces-header: [x-from=file]\ndrain: 9\n")
            http.get("/v1/models")
            assert not second.posts, "nothing of it has changed, so it goes on gathering"
            path.write_text("traces-endpoint: nowhere\n")
            s.process.send_signal(signal.SIGHUP)
            eventually(lambda: "reload failed, nothing was changed" in s.read_log())
            http.get("/v1/models")
            switch(s, "drain: 7\n")
            second.wait(lambda c: len(c.spans) == 3)
            http.get("/v1/models")
            assert s.metric("realm_traces_exported_total") == 4, "of all collectors"
            assert "needs a restart" not in s.read_log()
            s.stop()
        assert [x.trace for x in first.spans] == [LOW] and len(second.spans) == 3
        assert second.posts[0][2]["x-from"] == "file"


def test_spans_are_off_unless_asked_for(plain):
    with Collector() as c:
        for env in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
            with plain(c, "--traces-endpoint", c.url, **env) as s:
                httpx.get(s.url + "/v1/models", headers=parent(LOW))
                s.stop()
                assert "no spans are exported" in s.read_log()
        assert not c.posts


@pytest.mark.parametrize("env, words", [
    ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "traces-sampler: 'jaeger_remote' is none of"),
    ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"),
    ({"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "novalue"}, "OTEL_RESOURCE_ATTRIBUTES"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "good=yes,bad=heliotrope%ff"}, "resource attribute 2 is no UTF-8"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "heliotrope"}, "traces-header, number 1"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "a b=heliotrope"}, "header 1 for the collector"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "a=heliotrope%0d%0ax:1"}, "header 1 for the collector"),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "heliotrope"}, "the collector's address"),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://me:heliotrope@x/"}, "the collector's address"),
])
def test_wrong_settings_are_told_without_secrets(run, smollm2, env, words):
    done = run("serve", "--model", smollm2, "--kv-memory", "64m", "--port", "0", check=False, timeout=60,
               env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", **env})
    assert done.code != 0 and words in done.err and "heliotrope" not in done.err, done.err
