"""`realm serve` as clients see it: OpenAI's own package, HTTP/1.1 and HTTP/2, and clients that misbehave."""
import base64
import concurrent.futures
import contextlib
import gzip
import json
import os
import math
import pathlib
import shutil
import socket
import ssl
import struct
import subprocess
import time

import h2.connection
import httpx
import openai
import pytest

from serving import serving

FRANCE = [{"role": "system", "content": "Answer in one short sentence."},
          {"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(realm, smollm2):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "512m", "--log-format", "json") as s:
        yield s
        assert s.process.poll() is None, s.read_log()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)


def chat(client, **more):
    return client.chat.completions.create(model="smol", messages=FRANCE, **{"temperature": 0, "max_tokens": 24, **more})


# ---- what OpenAI's client does -----------------------------------------------------------------------


def test_models_are_listed_and_looked_up(client):
    assert [m.id for m in client.models.list()] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("other")
    assert e.value.code == "model_not_found"


def test_a_conversation_is_answered_as_realm_run_answers_it(client, run, smollm2):
    answer = chat(client)
    said = run("run", "--model", smollm2, "--chat", "--system", FRANCE[0]["content"], "--prompt",
               FRANCE[1]["content"], "--max-tokens", "24").out.strip()
    assert answer.choices[0].message.content.strip() == said
    assert "Paris" in said
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 3


def test_a_stream_says_the_same_piece_by_piece(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) >= 4
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({c.id for c in chunks}) == 1


def test_a_prompt_seen_before_is_cached(client):
    messages = [{"role": "user", "content": "Tell me about the sea. " * 40}]
    usages = [client.chat.completions.create(model="smol", messages=messages, max_tokens=2).usage for _ in range(2)]
    assert usages[0].prompt_tokens == usages[1].prompt_tokens
    assert usages[1].prompt_tokens_details.cached_tokens > usages[1].prompt_tokens // 2


def test_several_choices_share_the_prompt_and_differ(client):
    answer = client.chat.completions.create(model="smol", messages=[{"role": "user", "content": "Tell me a story."}],
                                            n=4, temperature=1.2, max_tokens=12, seed=7)
    texts = [c.message.content for c in answer.choices]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert answer.usage.completion_tokens == 48
    again = client.chat.completions.create(model="smol", messages=[{"role": "user", "content": "Tell me a story."}],
                                           n=4, temperature=1.2, max_tokens=12, seed=7)
    assert [c.message.content for c in again.choices] == texts, "the same seed says the same"


def test_a_stream_of_several_choices_carries_each(client):
    whole = chat(client, n=3, seed=3, temperature=1)
    texts = {0: "", 1: "", 2: ""}
    for chunk in chat(client, n=3, seed=3, temperature=1, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [texts[i] for i in range(3)] == [c.message.content for c in whole.choices]


def test_stops_and_lengths_end_an_answer(client):
    cut = chat(client, max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    stopped = chat(client, stop=["Paris"])
    assert stopped.choices[0].finish_reason == "stop" and "Paris" not in stopped.choices[0].message.content
    newer = client.chat.completions.create(model="smol", messages=FRANCE, temperature=0, max_completion_tokens=3)
    assert newer.usage.completion_tokens == 3


def test_logprobs_say_what_was_chosen_and_streams_say_the_same(client):
    answer = chat(client, logprobs=True, top_logprobs=3, max_tokens=6)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert "".join(t.token for t in tokens) == answer.choices[0].message.content
    for t in tokens:
        assert len(t.top_logprobs) == 3
        assert t.top_logprobs[0].token == t.token, "greedy takes the likeliest"
        assert t.logprob == t.top_logprobs[0].logprob <= 0
        assert bytes(t.bytes).decode() == t.token
    streamed = []
    text = ""
    for chunk in chat(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=True):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert text == answer.choices[0].message.content
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in tokens]


def test_a_bias_forbids_a_token(client, run, smollm2):
    said = chat(client, max_tokens=1).choices[0].message.content
    ids = json.loads(run("tokenize", "--model", smollm2, "--json", said).out)
    first = ids["tokens"][0]
    other = chat(client, max_tokens=1, logit_bias={str(first): -100}).choices[0].message.content
    assert other != said


def test_json_formats_are_held_to(client):
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
              "required": ["city", "big"], "additionalProperties": False}
    answer = chat(client, max_tokens=100, response_format={
        "type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}})
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "big"} and isinstance(value["big"], bool)


def test_completions_go_on_with_texts_and_with_ids(client):
    answer = client.completions.create(model="smol", prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in answer.choices[0].text
    assert answer.usage.completion_tokens == 4
    many = client.completions.create(model="smol", prompt=["The capital of France is", "One, two, three,"],
                                     temperature=0, max_tokens=4)
    assert many.choices[0].text == answer.choices[0].text and len(many.choices) == 2
    echoed = client.completions.create(model="smol", prompt="The capital of France is", temperature=0, max_tokens=4, echo=True)
    assert echoed.choices[0].text == "The capital of France is" + answer.choices[0].text
    ids = client.completions.create(model="smol", prompt=[1, 2, 3], temperature=0, max_tokens=2)
    assert ids.usage.prompt_tokens == 3
    probable = client.completions.create(model="smol", prompt="The capital of France is", temperature=0, max_tokens=4,
                                         logprobs=2)
    logprobs = probable.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    assert logprobs.text_offset[0] == 0
    streamed = "".join(c.choices[0].text for c in client.completions.create(
        model="smol", prompt="The capital of France is", temperature=0, max_tokens=4, stream=True))
    assert streamed == answer.choices[0].text


def test_embeddings_are_unit_vectors_and_alike_where_texts_are(client):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by one percent."]
    answer = client.embeddings.create(model="smol", input=texts, encoding_format="float")
    vectors = [d.embedding for d in answer.data]
    assert [d.index for d in answer.data] == [0, 1, 2]
    for v in vectors:
        assert math.isclose(sum(x * x for x in v), 1, rel_tol=1e-4)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2])
    assert answer.usage.prompt_tokens > 10
    raw = httpx.post(str(client.base_url) + "embeddings", json={"model": "smol", "input": texts[0], "encoding_format": "base64"})
    data = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(vectors[0], rel=1e-6)


# ---- what is wrong is named --------------------------------------------------------------------------

WRONG = [
    ({"model": "other"}, 404, "model", "model_not_found"),
    ({"model": None}, 400, "model", "missing_required_parameter"),
    ({"model": 5}, 400, "model", "invalid_type"),
    ({"messages": None}, 400, "messages", "missing_required_parameter"),
    ({"messages": "hi"}, 400, "messages", "invalid_type"),
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type", "invalid_value"),
    ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
    ({"temperature": 3}, 400, "temperature", "invalid_value"),
    ({"top_p": -1}, 400, "top_p", "invalid_value"),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": 1.5}, 400, "n", "invalid_type"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": 100000}, 400, None, "context_length_exceeded"),
    ({"stop": 5}, 400, "stop", "invalid_type"),
    ({"stop": ""}, 400, "stop", "invalid_value"),
    ({"stop": [""]}, 400, "stop", "invalid_type"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, 400, "logit_bias", "invalid_value"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    ({"stream": "yes"}, 400, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"response_format": {"type": "xml"}}, 400, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "missing_required_parameter"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, 400, None, "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "unsupported_parameter"),
    ({"tool_choice": "auto"}, 400, "tool_choice", "invalid_value"),
    ({"seed": "x"}, 400, "seed", "invalid_type"),
    ({"reasoning_effort": 1}, 400, "reasoning_effort", "invalid_type"),
    ({"chat_template_kwargs": []}, 400, "chat_template_kwargs", "invalid_type"),
    ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs", "invalid_value"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, 400, "enable_thinking", "invalid_type"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", "unsupported_parameter"),
    ({"temprature": 1}, 400, "temprature", "unknown_parameter"),
]


@pytest.mark.parametrize("change,status,param,code", WRONG, ids=[str(w[0])[:50] for w in WRONG])
def test_every_field_is_checked_and_named(server, change, status, param, code):
    body = {"model": "smol", "messages": FRANCE, "max_tokens": 2, **change}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["message"] and error["type"] == "invalid_request_error"


def test_a_prompt_over_the_context_says_by_how_much(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="smol", prompt="word " * 9000, max_tokens=1)
    assert e.value.code == "context_length_exceeded"
    assert "8192" in str(e.value)
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="smol", prompt="word " * 9000, max_tokens=1, stream=True)
    assert e.value.code == "context_length_exceeded", "a stream that cannot begin has its status"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nonsense", b'{"model":"smol","model":"smol"}', b"[" * 100000,
                                  b'{"model":"\xff"}', b"\x00"])
def test_bodies_that_are_not_json_are_refused(server, body):
    answer = httpx.post(server.url + "/v1/chat/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_unknown_paths_and_methods_have_their_status(server):
    assert httpx.get(server.url + "/nothing").json()["error"]["code"] == "not_found"
    wrong = httpx.get(server.url + "/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert httpx.post(server.url + "/health").headers["allow"] == "GET, HEAD"
    assert httpx.options(server.url + "/nothing").status_code == 404
    asked = httpx.options(server.url + "/v1/models")
    assert asked.status_code == 204 and asked.headers["allow"] == "GET, HEAD" and asked.content == b""


def test_what_openais_newer_parameters_say_is_taken(client):
    for more in ({"reasoning_effort": "low"}, {"verbosity": "low"}, {"modalities": ["text"]},
                 {"prediction": {"type": "content", "content": "Paris"}}, {"stream": True, "stream_options": {}},
                 {"extra_body": {"chat_template_kwargs": {"enable_thinking": False, "some": {"other": [1]}}}}):
        assert chat(client, **{"max_tokens": 1, **more})


def test_a_schema_that_lists_properties_leaves_no_room_to_invent_others(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    answer = chat(client, max_tokens=60, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content) == {"city": "Paris"}


def test_a_compressed_body_is_refused_for_what_it_is(server):
    body = gzip.compress(json.dumps({"model": "smol", "messages": FRANCE}).encode())
    with httpx.Client(base_url=server.url) as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
        assert answer.status_code == 415 and answer.headers["accept-encoding"] == "identity"
        assert answer.json()["error"]["code"] == "unsupported_content_encoding"
        good = http.post("/v1/completions", json={"model": "smol", "prompt": "a", "max_tokens": 1},
                         headers={"content-encoding": "identity"})
        assert good.status_code == 200, "the connection lives on"


def test_without_keys_pages_of_this_machine_alone_may_read(server):
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    for origin, allowed in (("http://localhost:3000", True), ("http://127.0.0.1", True), ("https://[::1]:8443", True),
                            ("http://localhost.evil.example", False), ("https://evil.example", False), ("null", False)):
        with httpx.Client(base_url=server.url, headers={"origin": origin}) as http:
            before = http.options("/v1/chat/completions", headers=ask)
            assert before.status_code == 204 and before.headers["access-control-allow-methods"] == "POST"
            assert before.headers["access-control-allow-headers"] == ask["access-control-request-headers"]
            for answer in (before, http.get("/v1/models"), http.get("/nothing")):
                assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None), origin
    assert "access-control-allow-origin" not in httpx.get(server.url + "/v1/models").headers
    assert httpx.post(server.url + "/v1/programs/none", json={}).json()["error"]["code"] == "program_not_found"


# ---- what describes the server is true ---------------------------------------------------------------


def test_health_ready_and_version(server, run):
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert httpx.get(server.url + "/ready").status_code == 200
    assert httpx.get(server.url + "/version").json()["version"] in run("--version").out
    head = httpx.head(server.url + "/health")
    assert head.status_code == 200 and head.content == b""


def test_the_description_names_what_is_served_and_nothing_else(server):
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in ("get", "post", "put", "patch", "delete"):
            answer = httpx.request(method.upper(), server.url + path.replace("{name}", "smol"))
            assert (answer.status_code != 405) == (method in operations), (method, path, answer.text)
            code = answer.json().get("error", {}).get("code") if "json" in answer.headers.get("content-type", "") else None
            assert code != "not_found" or "programs" in path
    assert "/v1/chat/completions" in paths


def test_request_ids_go_through(server):
    assert httpx.get(server.url + "/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = httpx.get(server.url + "/health", headers={"x-request-id": "not decent\t{"}).headers["x-request-id"]
    assert made.startswith("req-")


def test_metrics_count_and_prometheus_takes_them(server, client):
    before = server.metric("realm_generated_tokens_total")
    answer = chat(client, max_tokens=5)
    assert server.metric("realm_generated_tokens_total") == before + answer.usage.completion_tokens
    text = httpx.get(server.url + "/metrics").text
    if promtool := os.environ.get("REALM_PROMTOOL") or shutil.which("promtool"):
        checked = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_log_is_json_and_holds_neither_keys_nor_prompts(server):
    headers = {"authorization": "Bearer rk_secretsecret", "x-request-id": "logged-1"}
    httpx.post(server.url + "/v1/completions", headers=headers,
               json={"model": "smol", "prompt": "xyzzyprompt", "max_tokens": 1})
    lines = [json.loads(line) for line in server.read_log().splitlines()]
    mine = [line for line in lines if line.get("request") == "logged-1"]
    assert len(mine) == 1 and mine[0]["tenant"] == "default"
    assert "secretsecret" not in server.read_log() and "xyzzyprompt" not in server.read_log()


# ---- protocols -----------------------------------------------------------------------------------------


def test_http2_in_clear_carries_many_streams_at_once(server):
    with httpx.Client(http1=False, http2=True, base_url=server.url, timeout=120) as http2:
        ask = lambda i: http2.post("/v1/completions", json={"model": "smol", "prompt": f"{i},", "max_tokens": 4})
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(16)))
    assert {a.http_version for a in answers} == {"HTTP/2"}
    assert all(a.status_code == 200 for a in answers)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return folder


def test_tls_speaks_both_by_alpn_and_rereads_its_certificate(realm, smollm2, certificate):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m", "--tls-cert", certificate / "cert.pem",
                 "--tls-key", certificate / "key.pem") as server:
        trusted = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        for http2 in (False, True):
            with httpx.Client(http2=http2, verify=trusted) as client:
                answer = client.get(server.url + "/health")
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                text = "".join(client.post(server.url + "/v1/completions", json={
                    "model": "smol", "prompt": "Hi", "max_tokens": 8, "stream": True}).text)
                assert "[DONE]" in text
        assert server.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", timeout=2)[:1] != b"H", "no clear text here"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", certificate / "key.pem", "-out", certificate / "cert.pem", "-subj", "/CN=renewed",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        server.process.send_signal(1)
        renewed = ssl.create_default_context(cafile=str(certificate / "cert.pem"))

        def is_taken():
            with contextlib.suppress(httpx.ConnectError):
                return httpx.get(server.url + "/health", verify=renewed).status_code == 200

        assert eventually(is_taken), "the new certificate was not taken"
        assert server.stop() == 0


def test_other_addresses_need_keys(run, smollm2):
    refused = run("serve", "--model", smollm2, "--host", "0.0.0.0", "--port", "0", check=False)
    assert refused.code == 1 and "without keys only this machine may be served" in refused.err


# ---- clients that misbehave ----------------------------------------------------------------------------


def eventually(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def long_stream(**more):
    body = json.dumps({"model": "smol", "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True,
                       "stream": True, **more}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_a_client_that_goes_frees_its_session_at_once(server):
    with server.raw() as s:
        s.sendall(long_stream())
        assert b"200 OK" in s.recv(65536)
        assert eventually(lambda: server.metric("realm_engine_sessions") == 1)
    assert eventually(lambda: server.metric("realm_engine_sessions") == 0)
    assert eventually(lambda: server.metric("realm_sandboxes") == 0)


def test_a_stream_that_is_reset_in_http2_frees_its_session(server):
    body = json.dumps({"model": "smol", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True})
    http2 = h2.connection.H2Connection()
    with server.raw() as s:
        http2.initiate_connection()
        http2.send_headers(1, [(":method", "POST"), (":path", "/v1/completions"), (":scheme", "http"), (":authority", "x")])
        http2.send_data(1, body.encode(), end_stream=True)
        s.sendall(http2.data_to_send())
        text = b""
        while b"data: " not in text:
            for event in http2.receive_data(s.recv(65536)):
                text += getattr(event, "data", b"")
            s.sendall(http2.data_to_send())
        assert eventually(lambda: server.metric("realm_engine_sessions") == 1)
        http2.reset_stream(1, 8)
        s.sendall(http2.data_to_send())
        assert eventually(lambda: server.metric("realm_engine_sessions") == 0)
        http2.ping(b"12345678")
        s.sendall(http2.data_to_send())
        assert s.recv(65536), "the connection lives on"


def test_huge_bodies_and_heads_are_refused_without_being_read(server):
    answer = server.ask(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
    assert b" 413 " in answer
    answer = server.ask(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n")
    assert b" 431 " in answer
    answer = server.ask(b"GET /" + b"x" * 100000)
    assert b" 431 " in answer
    assert httpx.get(server.url + "/health").status_code == 200


def test_smuggled_requests_are_refused(server):
    answer = server.ask(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n"
                        b"0\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = server.ask(one * 50 + last)
    assert answer.count(b"200 OK") == 51 and answer.rstrip().endswith(b'}')
    assert answer.rfind(b'"version"') > answer.rfind(b'"status"')


def test_a_neighbour_is_served_while_others_are_slow(server, client):
    slow = [server.raw() for _ in range(50)]
    for i, s in enumerate(slow):
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{" if i % 2 else b"GET /hea")
    unread = server.raw()
    unread.sendall(long_stream(max_tokens=500))
    assert "Paris" in chat(client).choices[0].message.content
    for s in [*slow, unread]:
        s.close()
    assert eventually(lambda: server.metric("realm_engine_sessions") == 0)


def test_garbage_of_all_kinds_leaves_the_server_well(server):
    for data in (b"\x00" * 100, b"\x16\x03\x01\x00\xff" * 20, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
                 b"PRI * HTTP/1.1\r\n\r\n", b"GET", b"\r\n" * 1000, b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
        server.ask(data, timeout=0.3)
    assert httpx.get(server.url + "/health").status_code == 200


def test_a_thousand_idle_connections_cost_little(server):
    def resident():
        for line in pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])

    httpx.get(server.url + "/health")
    before = resident()
    idle = []
    for _ in range(1000):
        s = server.raw()
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.append(s)
    for s in idle:
        assert b"200 OK" in s.recv(4096)
    assert (resident() - before) / 1000 < 40, "KiB a connection"
    for s in idle:
        s.close()


# ---- life and death -------------------------------------------------------------------------------------


def test_draining_lets_streams_finish_and_refuses_new_work(realm, smollm2):
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m") as server:
        with httpx.Client() as kept, httpx.Client() as client:
            assert kept.get(server.url + "/health").status_code == 200
            body = {"model": "smol", "prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
            with client.stream("POST", server.url + "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                server.process.terminate()
                assert eventually(lambda: server.process.poll() is None and refused(server))
                rest = list(lines)
            assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest[-2:]
        assert server.process.wait(60) == 0


def test_what_a_server_cannot_listen_with_is_one_sentence(realm, run, smollm2, certificate, tmp_path):
    def sentence(*arguments):
        failed = run("serve", "--model", f"m={smollm2}", "--kv-memory", "64m", "--quiet", *arguments, check=False)
        assert failed.code == 1
        return [line for line in failed.err.splitlines() if line.startswith("realm serve: ")][-1]

    def with_tls(cert, key):
        return sentence("--port", "0", "--tls-cert", cert, "--tls-key", key)

    cert, key = certificate / "cert.pem", certificate / "key.pem"
    assert "both a certificate and its key" in sentence("--port", "0", "--tls-cert", cert)
    assert with_tls(tmp_path / "none.pem", key).endswith(f"the certificate '{tmp_path / 'none.pem'}': No such file or directory")
    assert with_tls(cert, tmp_path / "none.pem").endswith(f"the key '{tmp_path / 'none.pem'}': No such file or directory")
    (tmp_path / "words.pem").write_text("no certificate at all\n")
    assert "none in it in PEM format" in with_tls(tmp_path / "words.pem", key)
    assert "none in it in PEM format" in with_tls(cert, tmp_path / "words.pem")
    subprocess.run(["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:word", "-out", tmp_path / "locked.pem"],
                   check=True, stderr=subprocess.DEVNULL)
    assert "needs a password" in with_tls(cert, tmp_path / "locked.pem"), "nobody is asked for it"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "address already in use" in sentence("--port", str(taken.getsockname()[1]))
    assert "give an address in numbers" in sentence("--host", "127.what")
    with serving(realm, "--model", f"m={smollm2}", "--kv-memory", "64m", "--host", "localhost") as server:
        assert httpx.get(server.url + "/health").status_code == 200


def refused(server):
    try:
        server.raw().close()
        return False
    except OSError:
        return True


def test_settings_come_from_file_environment_and_flags_in_that_order(realm, run, smollm2, tmp_path):
    settings = tmp_path / "realm.yaml"
    settings.write_text(f"model: {{}}\n")
    wrong = run("serve", "--config", settings, check=False)
    assert wrong.code == 1 and "'model' wants one value" in wrong.err
    settings.write_text("prot: 8080\n")
    assert "there is no setting 'prot'" in run("serve", "--config", settings, check=False).err
    settings.write_text("models:\n  small: x.gguf\n")
    assert "there is no setting 'models'" in run("serve", "--config", settings, check=False).err
    for text, kind in ("just words\n", "a string"), ("- model\n", "a list"), ("\ufeff12\n", "a whole number"):
        settings.write_text(text)
        assert f"it must hold lines 'NAME: VALUE', not {kind}" in run("serve", "--config", settings, check=False).err
    settings.write_text("port: 99999999\n")
    assert "'port' wants a whole number from 0 to 65535" in run("serve", "--config", settings, check=False).err
    settings.write_text(f"model:\n  - from-file={smollm2}\nkv-memory: 64m\nlog-format: text\n")
    with serving(realm, "--config", settings) as server:
        assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == "from-file"
    with serving(realm, "--config", settings, env={"REALM_MODEL": f"from-env={smollm2}"}) as server:
        assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == "from-env"
    with serving(realm, "--config", settings, "--model", f"a={smollm2}", "--model", f"b={smollm2}",
                 env={"REALM_MODEL": f"from-env={smollm2}"}) as server:
        assert [m["id"] for m in httpx.get(server.url + "/v1/models").json()["data"]] == ["a", "b"]
        assert server.stop() == 0
