"""gRPC as its own clients see it: grpcio with stubs made from our .proto, its health and reflection packages, and
grpcurl where it is there. The cases of gRPC's interoperability list that apply carry their names there."""
import concurrent.futures
import contextlib
import gzip
import importlib
import itertools
import json
import os
import pathlib
import queue
import shutil
import struct
import subprocess
import sys
import time

import grpc
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

import nodes
from nodes import eventually
from serving import serving

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FRANCE = [("system", "Answer in one short sentence."), ("user", "What is the capital of France?")]
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """The two modules that a client generates."""
    folder = tmp_path_factory.mktemp("stubs")
    assert protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                        "realm/v1/inference.proto"]) == 0
    sys.path.insert(0, str(folder))
    yield importlib.import_module("realm.v1.inference_pb2"), importlib.import_module("realm.v1.inference_pb2_grpc")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pb(stubs):
    return stubs[0]


@pytest.fixture(scope="module")
def server(realm, smollm2, tmp_path_factory):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "512m", "--data", tmp_path_factory.mktemp("data") / "d",
                 "--max-body", "1") as s:
        yield s
        assert s.process.poll() is None, s.read_log()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"{server.host}:{server.port}") as c:
        yield c


@pytest.fixture(scope="module")
def realm_v1(stubs, channel):
    return stubs[1].InferenceStub(channel)


def chat(pb, **sampling):
    return pb.ChatRequest(model="smol", messages=[pb.Message(role=r, content=c) for r, c in FRANCE],
                          sampling=pb.Sampling(**{"temperature": 0, "max_tokens": 24, **sampling}))


def endless(pb):
    return pb.GenerateRequest(model="smol", text="Once upon a time",
                              sampling=pb.Sampling(max_tokens=4000, ignore_eos=True))


def failure(call):
    with pytest.raises(grpc.RpcError) as e:
        consume(call())
    return e.value


def consume(answer):
    return list(answer) if hasattr(answer, "__next__") else answer


def trailers(call):
    return {k: v for k, v in call.trailing_metadata()}


# ---- the service ----------------------------------------------------------------------------------------


def test_a_conversation_is_answered_as_over_http(server, realm_v1, pb):
    pieces = list(realm_v1.Chat(chat(pb)))
    said = httpx.post(server.url + "/v1/chat/completions", json={
        "model": "smol", "temperature": 0, "max_tokens": 24,
        "messages": [{"role": r, "content": c} for r, c in FRANCE]}).json()
    assert "".join(p.text for p in pieces) == said["choices"][0]["message"]["content"]
    assert len(pieces) > 1
    assert [p.finish_reason for p in pieces[:-1]] == [pb.FINISH_REASON_UNSPECIFIED] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == pb.FINISH_REASON_STOP
    assert pieces[-1].usage.completion_tokens == said["usage"]["completion_tokens"]
    assert pieces[-1].usage.prompt_tokens == said["usage"]["prompt_tokens"]


def test_a_text_and_its_tokens_go_on_alike(realm_v1, pb):
    prompt = "The capital of France is"
    greedy = pb.Sampling(temperature=0, max_tokens=4)
    texts = list(realm_v1.Generate(pb.GenerateRequest(model="smol", text=prompt, sampling=greedy)))
    ids = realm_v1.Tokenize(pb.TokenizeRequest(model="smol", input=[prompt], add_special=True)).tokens[0]
    same = list(realm_v1.Generate(pb.GenerateRequest(model="smol", tokens=ids, sampling=greedy)))
    assert "Paris" in "".join(p.text for p in texts) == "".join(p.text for p in same)
    assert texts[-1].finish_reason == pb.FINISH_REASON_LENGTH and texts[-1].usage.completion_tokens == 4


def test_logprobs_come_with_their_tokens(realm_v1, pb):
    pieces = list(realm_v1.Chat(chat(pb, top_logprobs=2, max_tokens=5)))
    tokens = [t for p in pieces for t in p.tokens]
    assert len(tokens) == 5
    assert b"".join(t.token.token for t in tokens).decode() == "".join(p.text for p in pieces)
    for t in tokens:
        assert len(t.top) == 2 and t.top[0] == t.token and t.top[0].logprob >= t.top[1].logprob


def test_sampling_reaches_the_sampler(realm_v1, pb):
    first = "".join(p.text for p in realm_v1.Chat(chat(pb, max_tokens=1)))
    token = realm_v1.Tokenize(pb.TokenizeRequest(model="smol", input=[first])).tokens[0].ids[0]
    assert "".join(p.text for p in realm_v1.Chat(chat(pb, max_tokens=1, logit_bias={token: -100}))) != first
    stopped = "".join(p.text for p in realm_v1.Chat(chat(pb, stop=["Paris"])))
    assert "Paris" not in stopped
    schema = '{"type":"object","properties":{"big":{"type":"boolean"}},"required":["big"],"additionalProperties":false}'
    held = "".join(p.text for p in realm_v1.Chat(chat(pb, json_schema=schema)))
    assert held.replace(" ", "").replace("\n", "") in ('{"big":true}', '{"big":false}')
    seeded = [["".join(p.text for p in realm_v1.Chat(chat(pb, temperature=1.2, seed=s)))] for s in (7, 7, 8)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_embeddings_are_those_of_http(server, realm_v1, pb):
    texts = ["A cat sleeps on the sofa.", "Interest rates rose."]
    answer = realm_v1.Embed(pb.EmbedRequest(model="smol", input=texts))
    said = httpx.post(server.url + "/v1/embeddings", json={"model": "smol", "input": texts}).json()
    assert [list(v.values) for v in answer.vectors] == [pytest.approx(d["embedding"], rel=1e-6) for d in said["data"]]
    assert answer.usage.prompt_tokens == said["usage"]["prompt_tokens"]


def test_texts_become_the_tokens_of_realm_tokenize(realm_v1, pb, run, smollm2):
    texts = ["", "größer ☺ a\x00b", "<|im_start|>user"]
    tokens = realm_v1.Tokenize(pb.TokenizeRequest(model="smol", input=texts, parse_special=True)).tokens
    assert [list(t.ids) for t in tokens][0] == []
    assert len(tokens[2].ids) == 2, "a control token's text is that token"
    plain = run("tokenize", "--model", smollm2, "--json", "größer ☺").json["tokens"]
    assert list(realm_v1.Tokenize(pb.TokenizeRequest(model="smol", input=["größer ☺"])).tokens[0].ids) == plain
    nul = realm_v1.Tokenize(pb.TokenizeRequest(model="smol", input=["a\x00b", "a", "b"])).tokens
    assert len(nul[0].ids) > len(nul[1].ids) + len(nul[2].ids), "nothing is cut at a NUL"


def test_empty_unary(realm_v1, pb):
    models = realm_v1.ListModels(pb.ListModelsRequest()).models
    assert [(m.name, m.context_length, m.embedding_length, m.has_chat_template) for m in models] == [("smol", 8192, 576, True)]


def test_large_unary_and_client_compressed_unary(realm_v1, pb):
    large = pb.TokenizeRequest(model="smol", input=["word " * 60000])
    plain = realm_v1.Tokenize(large)
    assert len(plain.tokens[0].ids) > 60000
    assert realm_v1.Tokenize(large, compression=grpc.Compression.Gzip) == plain


def test_over_tls_by_alpn(realm, smollm2, stubs, pb, tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m", "--data", tmp_path / "d", "--tls-cert",
                 tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem") as s:
        trust = grpc.ssl_channel_credentials((tmp_path / "cert.pem").read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{s.port}", trust) as c:
            assert "Paris" in "".join(p.text for p in stubs[1].InferenceStub(c).Chat(chat(pb)))
        assert s.stop() == 0


# ---- deadlines and cancelling -----------------------------------------------------------------------------


def is_free(server, key=None):
    return server.metric("realm_engine_sessions", key) == 0 and server.metric("realm_sandboxes", key) == 0


def test_timeout_on_sleeping_server(server, realm_v1, pb):
    assert failure(lambda: realm_v1.Generate(endless(pb), timeout=0.5)).code() == CODE.DEADLINE_EXCEEDED
    eventually(lambda: is_free(server))


def test_the_server_keeps_a_deadline_whose_client_does_not(server, pb):
    """A client that says grpc-timeout and then forgets it gets the status from the server."""
    with server.raw(30) as s:
        events = talk(s, call("Generate", endless(pb).SerializeToString(), ("grpc-timeout", "300m")))
    assert status(events)[0] == "4"
    eventually(lambda: is_free(server))


def test_cancel_after_begin(channel, realm_v1, server):
    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(wait_for_ever(), wait_for_ready=True)
    stream.cancel()
    assert stream.code() == CODE.CANCELLED


def test_cancel_after_first_response(server, realm_v1, pb):
    stream = realm_v1.Generate(endless(pb))
    next(stream)
    eventually(lambda: server.metric("realm_engine_sessions") == 1)
    stream.cancel()
    assert stream.code() == CODE.CANCELLED
    eventually(lambda: is_free(server))
    assert server.metric("realm_engine_kv_pages_used") < server.metric("realm_engine_kv_pages")


# ---- what is wrong ----------------------------------------------------------------------------------------


def test_unimplemented_method_and_service(channel):
    for path in ("/realm.v1.Inference/Nothing", "/grpc.testing.UnimplementedService/UnimplementedCall"):
        e = failure(lambda: channel.unary_unary(path)(b""))
        assert e.code() == CODE.UNIMPLEMENTED and path in e.details()
        # a stream whose client waits for an answer before it says anything
        stream = channel.stream_stream(path)(itertools.chain(iter(()), wait_for_ever()))
        assert failure(lambda: stream).code() == CODE.UNIMPLEMENTED


def wait_for_ever():
    time.sleep(2)
    yield b""


WRONG = [
    (lambda pb: {"model": "other"}, CODE.NOT_FOUND, "model", "model_not_found"),
    (lambda pb: {"model": ""}, CODE.INVALID_ARGUMENT, "model", "missing_required_parameter"),
    (lambda pb: {"messages": []}, CODE.INVALID_ARGUMENT, "messages", "missing_required_parameter"),
    (lambda pb: {"messages": [pb.Message(role="wizard")]}, CODE.INVALID_ARGUMENT, "messages[0].role", "invalid_value"),
    (lambda pb: {"sampling": pb.Sampling(temperature=3)}, CODE.INVALID_ARGUMENT, "temperature", "invalid_value"),
    (lambda pb: {"sampling": pb.Sampling(temperature=float("nan"))}, CODE.INVALID_ARGUMENT, "sampling.temperature", "malformed_message"),
    (lambda pb: {"sampling": pb.Sampling(max_tokens=0)}, CODE.INVALID_ARGUMENT, "max_tokens", "invalid_value"),
    (lambda pb: {"sampling": pb.Sampling(max_tokens=100000)}, CODE.INVALID_ARGUMENT, None, "context_length_exceeded"),
    (lambda pb: {"sampling": pb.Sampling(top_logprobs=21)}, CODE.INVALID_ARGUMENT, "top_logprobs", "invalid_value"),
    (lambda pb: {"sampling": pb.Sampling(logit_bias={-1: 1})}, CODE.INVALID_ARGUMENT, "logit_bias", "invalid_value"),
    (lambda pb: {"sampling": pb.Sampling(json_schema="{")}, CODE.INVALID_ARGUMENT, "sampling.json_schema", "invalid_json"),
    (lambda pb: {"tools": [pb.Tool(name="f")]}, CODE.INVALID_ARGUMENT, "tools", "unsupported_parameter"),
    (lambda pb: {"tool_choice": "auto"}, CODE.INVALID_ARGUMENT, "tool_choice", "invalid_value"),
]


@pytest.mark.parametrize("change,code,param,realm_code", WRONG)
def test_every_field_is_checked_and_named(realm_v1, pb, change, code, param, realm_code):
    request = {"model": "smol", "messages": [pb.Message(role="user", content="hi")], "sampling": pb.Sampling(max_tokens=1),
               **change(pb)}
    e = failure(lambda: realm_v1.Chat(pb.ChatRequest(**request)))
    said = trailers(e)
    assert (e.code(), said.get("realm-param"), said.get("realm-code")) == (code, param, realm_code), e.details()
    assert e.details()


def test_a_field_that_is_not_known_is_refused(channel, pb):
    e = failure(lambda: channel.unary_unary("/realm.v1.Inference/ListModels")(b"\xa0\x06\x01"))
    assert e.code() == CODE.INVALID_ARGUMENT and "has no field 100" in e.details()


def test_status_code_and_message_with_special_characters(realm_v1, pb):
    name = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈 100%\t\n"
    e = failure(lambda: realm_v1.Embed(pb.EmbedRequest(model=name, input=["x"])))
    assert e.code() == CODE.NOT_FOUND and "☺ and non-BMP 😈 100%" in e.details()


def test_a_message_over_the_limit_is_resource_exhausted(realm_v1, pb):
    over = pb.TokenizeRequest(model="smol", input=["x" * (1 << 20)])
    e = failure(lambda: realm_v1.Tokenize(over))
    assert e.code() == CODE.RESOURCE_EXHAUSTED and trailers(e)["realm-code"] == "request_too_large"
    e = failure(lambda: realm_v1.Tokenize(over, compression=grpc.Compression.Gzip))
    assert e.code() == CODE.RESOURCE_EXHAUSTED, "a small message that becomes a large one too"


def test_custom_metadata(realm_v1, pb):
    answer, call = realm_v1.ListModels.with_call(pb.ListModelsRequest(), metadata=[
        ("x-request-id", "mine-2"), ("x-echo-trailing-bin", b"\xab\xab\xab")])
    assert dict(call.initial_metadata())["x-request-id"] == "mine-2"


# ---- by the byte --------------------------------------------------------------------------------------------


def call(method, message, *headers, content_type="application/grpc", service="realm.v1.Inference", framed=True, flag=0, end=True,
         http_method="POST"):
    """What talk() sends for one call."""
    head = [(":method", http_method), (":path", f"/{service}/{method}"), (":scheme", "http"), (":authority", "x"),
            ("content-type", content_type), ("te", "trailers"), *headers]
    return head, struct.pack(">BI", flag, len(message)) + message if framed else message, end


def talk(sock, what, pieces=None):
    """Sends one call and returns all events until its stream is over."""
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http2.initiate_connection()
    http2.increment_flow_control_window(1 << 24)
    head, body, end = what
    http2.send_headers(1, head, end_stream=end and not body)
    for at in range(0, len(body), pieces or 16384):
        part = body[at:at + (pieces or 16384)]
        http2.send_data(1, part, end_stream=end and at + len(part) == len(body))
    sock.sendall(http2.data_to_send())
    events = []
    while not any(isinstance(e, (h2.events.StreamEnded, h2.events.StreamReset)) for e in events):
        data = sock.recv(65536)
        if not data:
            break
        for event in http2.receive_data(data):
            events.append(event)
            if isinstance(event, h2.events.DataReceived):
                http2.acknowledge_received_data(event.flow_controlled_length, 1)
        sock.sendall(http2.data_to_send())
    return events


def status(events):
    """grpc-status and the bytes of messages."""
    data = b"".join(e.data for e in events if isinstance(e, h2.events.DataReceived))
    for e in events:
        if isinstance(e, h2.events.TrailersReceived):
            return dict(e.headers)["grpc-status"], data
    return dict(events_head(events)).get("grpc-status"), data


def events_head(events):
    return next(e.headers for e in events if isinstance(e, h2.events.ResponseReceived))


def ask(server, what, **more):
    with server.raw(10) as s:
        return talk(s, what, **more)


def test_messages_in_pieces_of_any_size(server, pb):
    message = pb.TokenizeRequest(model="smol", input=["one two three"]).SerializeToString()
    whole = status(ask(server, call("Tokenize", message)))
    assert whole[0] == "0" and len(whole[1]) > 5
    for pieces in (1, 2, 3, 5, 7):
        assert status(ask(server, call("Tokenize", message), pieces=pieces)) == whole


@pytest.mark.parametrize("what,code", [
    (call("ListModels", b"", flag=2), "3"),
    (call("ListModels", b"", framed=False), "3"),
    (call("ListModels", b"\0\0\0", framed=False), "3"),
    (call("ListModels", b"\0\xff\xff\xff\xffx", framed=False), "3"),
    (call("ListModels", b"\0\0\0\0\0\0\0\0\0\0", framed=False), "3"),
    (call("ListModels", b"\x08"), "3"),
    (call("ListModels", b"", flag=1), "13"),
    (call("ListModels", b"junk", ("grpc-encoding", "gzip"), flag=1), "3"),
    (call("ListModels", gzip.compress(b""), ("grpc-encoding", "gzip"), flag=1), "0"),
    (call("ListModels", b"", ("grpc-encoding", "identity")), "0"),
    (call("ListModels", b"", ("grpc-timeout", "5 parsecs")), "3"),
    (call("ListModels", b"", content_type="application/grpc+proto"), "0"),
    (call("Nothing", b""), "12"),
    (call("Check", b"", service="grpc.health.v1.Health"), "0"),
    (call("Check", b"\x0a\x01x", service="grpc.health.v1.Health"), "5"),
])
def test_odd_requests_have_their_codes(server, what, code):
    events = ask(server, what)
    assert status(events)[0] == code, events
    assert dict(events_head(events))[":status"] == "200"


def test_another_encoding_is_unimplemented_and_those_spoken_are_told(server):
    events = ask(server, call("ListModels", b"", ("grpc-encoding", "zstd")))
    assert status(events)[0] == "12"
    assert dict(events_head(events))["grpc-accept-encoding"] == "identity, gzip"


@pytest.mark.parametrize("kind", ["application/json", "application/grpc+json", "application/grpc-web", "text/plain"])
def test_another_content_type_is_415(server, kind):
    assert dict(events_head(ask(server, call("ListModels", b"", content_type=kind))))[":status"] == "415"
    assert httpx.post(server.url + "/realm.v1.Inference/ListModels", headers={"content-type": kind}).status_code == 415


def test_http1_cannot_carry_it(server):
    answer = httpx.post(server.url + "/realm.v1.Inference/ListModels", headers={"content-type": "application/grpc"})
    assert answer.status_code == 505 and answer.json()["error"]["code"] == "http2_required"


# ---- health and reflection ------------------------------------------------------------------------------------


def test_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "realm.v1.Inference", "grpc.health.v1.Health"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
    assert failure(lambda: health.Check(health_pb2.HealthCheckRequest(service="x"))).code() == CODE.NOT_FOUND
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=120)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()
    for seconds in (0.3, 3, 30):  # on a busy machine the first answer may take as long as the call had
        late = health.Watch(health_pb2.HealthCheckRequest(), timeout=seconds)
        with contextlib.suppress(grpc.RpcError):
            assert next(late).status == health_pb2.HealthCheckResponse.SERVING
            break
    else:
        pytest.fail("nothing in thirty seconds")
    assert failure(lambda: late).code() == CODE.DEADLINE_EXCEEDED


def test_reflection_describes_what_the_proto_says(channel, pb):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        "realm.v1.Inference", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection"}
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("realm.v1.Inference")
    assert {m.name for m in service.methods} == {"Generate", "Chat", "Embed", "Tokenize", "ListModels"}
    mine = pool.FindMessageTypeByName("realm.v1.Sampling")
    assert [(f.name, f.number) for f in mine.fields] == [(f.name, f.number) for f in pb.Sampling.DESCRIPTOR.fields]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_ping_pong_on_the_reflection_stream(channel, version):
    R = reflection_pb2.ServerReflectionRequest
    method = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                                   request_serializer=R.SerializeToString,
                                   response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    questions = queue.Queue()
    answers = method(iter(questions.get, None))

    def ask(**more):
        questions.put(R(host="h", **more))
        answer = next(answers)
        assert answer.original_request == R(host="h", **more) and answer.valid_host == "h"
        return answer

    file = ask(file_by_filename="realm/v1/inference.proto").file_descriptor_response.file_descriptor_proto[0]
    for symbol in ("realm.v1.Inference", "realm.v1.Inference.Chat", "realm.v1.Sampling", "realm.v1.Sampling.seed",
                   "realm.v1.Sampling.format", "realm.v1.FinishReason", "realm.v1.FINISH_REASON_STOP",
                   "realm.v1.Sampling.LogitBiasEntry.key"):
        assert ask(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto[0] == file, symbol
    for wrong in ("", "realm", "realm.v1", "realm.v1.", "realm.v1.Infer", "realm.v1.Inference.Chat.x", "realm.v1.Sampling.x", "x"):
        assert ask(file_containing_symbol=wrong).error_response.error_code == 5, wrong
    assert ask(file_by_filename="etc/passwd").error_response.error_code == 5
    extension = reflection_pb2.ExtensionRequest(containing_type="realm.v1.Model", extension_number=7)
    assert ask(file_containing_extension=extension).error_response.error_code == 5
    none = ask(all_extension_numbers_of_type="realm.v1.Model").all_extension_numbers_response
    assert none.base_type_name == "realm.v1.Model" and not none.extension_number
    assert ask(all_extension_numbers_of_type="realm.v1.Inference").error_response.error_code == 5
    assert len(ask(list_services="*").list_services_response.service) == 4
    questions.put(None)
    assert list(answers) == [] and answers.code() == CODE.OK


def test_many_questions_at_once_are_answered_in_order(channel):
    R = reflection_pb2.ServerReflectionRequest
    asked = [R(file_by_filename="realm/v1/inference.proto") if i % 2 else R(list_services=str(i)) for i in range(400)]
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    assert [a.original_request for a in stub.ServerReflectionInfo(iter(asked))] == asked


def test_who_asks_and_does_not_read_is_broken_off(server):
    """Questions without a window for their answers: what waits is bounded, then the stream is reset."""
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    question = b"\0\0\0\0\x1a\x1a\x18realm/v1/inference.proto"
    with server.raw(10) as s:
        http2.initiate_connection()
        http2.send_headers(1, call("ServerReflectionInfo", b"", service="grpc.reflection.v1.ServerReflection")[0])
        s.sendall(http2.data_to_send())
        sent = 0
        ended = False
        s.settimeout(0.2)
        while sent < 12_000_000 and not ended:
            room = min(http2.local_flow_control_window(1), 16384) // len(question) * len(question)
            if room:
                http2.send_data(1, question * (room // len(question)))
                sent += room
                s.sendall(http2.data_to_send())
            try:
                for event in http2.receive_data(s.recv(65536)):
                    ended |= isinstance(event, (h2.events.StreamReset, h2.events.StreamEnded))
            except TimeoutError:
                if not room:
                    break
        assert sent < 2_000_000
    assert httpx.get(server.url + "/health").status_code == 200


# ---- tenants ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory):
    with nodes.node(realm, tmp_path_factory.mktemp("node") / "data", smollm2) as n:
        n.admin = n.key(None)
        n.start()
        yield n


def keyed(stubs, channel, key):
    return stubs[1].InferenceStub(channel), [("authorization", f"Bearer {key}")] if key else []


def test_keys_limits_and_grants_of_tenants_hold_here_too(node, stubs, pb):
    limited = node.tenant("limited", "--requests-per-minute", "2")
    spent = node.tenant("spent", "--tokens-per-day", "40")
    elsewhere = node.tenant("elsewhere", "--models", "another")
    for key in (limited, spent, elsewhere):
        with node.http(key) as http:
            eventually(lambda: http.get("/v1/models").status_code == 200)
    with grpc.insecure_channel(f"{node.server.host}:{node.server.port}") as c:
        for key in (None, "rk_wrong"):
            stub, metadata = keyed(stubs, c, key)
            e = failure(lambda: stub.ListModels(pb.ListModelsRequest(), metadata=metadata))
            assert e.code() == CODE.UNAUTHENTICATED and trailers(e)["realm-code"] == "invalid_api_key"
            assert failure(lambda: stub.Chat(chat(pb), metadata=metadata)).code() == CODE.UNAUTHENTICATED
        stub, metadata = keyed(stubs, c, limited)
        for _ in range(2):
            assert "Paris" in "".join(p.text for p in stub.Chat(chat(pb), metadata=metadata))
        e = failure(lambda: stub.Chat(chat(pb), metadata=metadata))
        said = trailers(e)
        assert e.code() == CODE.RESOURCE_EXHAUSTED and said["x-ratelimit-limit-requests"] == "2"
        assert 0 < int(said["grpc-retry-pushback-ms"]) <= 60000 and int(said["retry-after"]) > 0
        stub, metadata = keyed(stubs, c, spent)
        last = []
        e = failure(lambda: [last.append(consume(stub.Chat(chat(pb), metadata=metadata))) for _ in range(40)])
        assert len(last) == 1, "the first was cut where the budget ended, the second refused"
        assert e.code() == CODE.RESOURCE_EXHAUSTED and trailers(e)["grpc-retry-pushback-ms"] == "-1"
        stub, metadata = keyed(stubs, c, elsewhere)
        assert not stub.ListModels(pb.ListModelsRequest(), metadata=metadata).models
        assert failure(lambda: stub.Chat(chat(pb), metadata=metadata)).code() == CODE.NOT_FOUND
        assert health_pb2_grpc.HealthStub(c).Check(health_pb2.HealthCheckRequest()).status == 1, "probes need no key"


def test_a_program_of_the_tenant_answers_and_usage_is_exact(node, stubs, pb):
    key = node.tenant("own")
    node.deploy("own", "chat", nodes.SPINS)
    node.deploy("own", "completion", nodes.says("hello from own"))  # once this one is seen, so is the other
    with node.http(key) as http:
        eventually(lambda: http.post("/v1/programs/completion", json={}).status_code == 200)
    with grpc.insecure_channel(f"{node.server.host}:{node.server.port}") as c:
        stub, metadata = keyed(stubs, c, key)
        request = pb.GenerateRequest(model="smol", text="x")
        assert "".join(p.text for p in stub.Generate(request, metadata=metadata)) == "hello from own"
        e = failure(lambda: stub.Chat(chat(pb), metadata=metadata, timeout=0.5))
        assert e.code() == CODE.DEADLINE_EXCEEDED
    eventually(lambda: is_free(node.server, node.admin))


# ---- draining, and tools ----------------------------------------------------------------------------------------


def test_draining_lets_answers_finish_tells_watchers_and_refuses(realm, smollm2, stubs, pb, tmp_path):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m", "--data", tmp_path / "d") as s, \
            grpc.insecure_channel(f"{s.host}:{s.port}") as c:
        watch = health_pb2_grpc.HealthStub(c).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stream = stubs[1].InferenceStub(c).Generate(pb.GenerateRequest(
            model="smol", text="Once", sampling=pb.Sampling(max_tokens=150, ignore_eos=True)))
        next(stream)
        s.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert failure(lambda: watch).code() == CODE.UNAVAILABLE
        assert list(stream)[-1].usage.completion_tokens == 150
        assert s.process.wait(20) == 0
        assert failure(lambda: stubs[1].InferenceStub(c).ListModels(pb.ListModelsRequest())).code() == CODE.UNAVAILABLE


def grpcurl(server, *arguments):
    program = os.environ.get("REALM_GRPCURL") or shutil.which("grpcurl")
    if not program:
        pytest.skip("grpcurl is not there: set REALM_GRPCURL, or let scripts/test.sh build it")
    return subprocess.run([program, "-plaintext", "-max-time", "20", *arguments], capture_output=True, text=True, timeout=60)


def test_grpcurl_needs_no_proto(server):
    address = f"{server.host}:{server.port}"
    assert "realm.v1.Inference" in grpcurl(server, address, "list").stdout
    assert "rpc Chat ( .realm.v1.ChatRequest ) returns ( stream .realm.v1.Piece )" in grpcurl(
        server, address, "describe", "realm.v1.Inference").stdout
    assert "SERVING" in grpcurl(server, address, "grpc.health.v1.Health/Check").stdout
    said = grpcurl(server, "-d", '{"model":"smol","text":"The capital of France is","sampling":{"temperature":0}}', address,
                   "realm.v1.Inference/Generate")
    assert "Paris" in said.stdout and "FINISH_REASON_LENGTH" in said.stdout, said.stderr
    wrong = grpcurl(server, "-d", '{"model":"x","input":["y"]}', address, "realm.v1.Inference/Embed")
    assert wrong.returncode != 0 and "Code: NotFound" in wrong.stderr


def test_many_calls_on_one_channel(realm_v1, pb):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda i: "".join(p.text for p in realm_v1.Chat(chat(pb))), range(16)))
    assert len(set(texts)) == 1 and "Paris" in texts[0]


def test_tools_are_called_and_answered(realm, smollm2_with_tools, stubs, pb, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(smollm2_with_tools.parent))
    tool = pb.Tool(name="weather", description="The weather of a city", parameters_json="""{"type":"object","properties":
        {"city":{"enum":["Paris","Rome"]}},"required":["city"],"additionalProperties":false}""")
    ask = pb.ChatRequest(model="smol", messages=[pb.Message(role="user", content="How is the weather in Paris?")], tools=[tool],
                         sampling=pb.Sampling(temperature=0, max_tokens=100), tool_choice="weather")
    with serving(realm, "--model", f"smol={smollm2_with_tools}", "--kv-memory", "64m", "--data", tmp_path / "d") as s, \
            grpc.insecure_channel(f"{s.host}:{s.port}") as c:
        stub = stubs[1].InferenceStub(c)
        assert stub.ListModels(pb.ListModelsRequest()).models[0].takes_tools
        pieces = list(stub.Chat(ask))
        [made] = [t for p in pieces for t in p.tool_calls]
        assert pieces[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS and made.name == "weather" and made.id
        assert json.loads(made.arguments_json)["city"] in ("Paris", "Rome")
        ask.messages.extend([pb.Message(role="assistant", tool_calls=[made]),
                             pb.Message(role="tool", tool_call_id=made.id, content="It rains.")])
        ask.tool_choice = "auto"
        assert list(stub.Chat(ask))[-1].usage.prompt_tokens > pieces[-1].usage.prompt_tokens
        ask.tools[0].parameters_json = "not JSON"
        e = failure(lambda: stub.Chat(ask))
        assert e.code() == CODE.INVALID_ARGUMENT and trailers(e)["realm-param"] == "tools[0].parameters_json"
        ask.tool_choice = "another"
        ask.tools[0].parameters_json = ""
        assert trailers(failure(lambda: stub.Chat(ask)))["realm-param"] == "tool_choice"
