"""`realm serve --data DIR`: keys, limits, programs and usage of tenants, as their clients see them."""
import base64
import hashlib
import hmac
import json
import os
import pathlib
import subprocess
import threading
import time

import httpx
import openai
import pytest

import nodes
from nodes import eventually

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("node") / "data"
    with nodes.node(realm, folder, smollm2) as n:
        n.admin = n.key(None)
        n.start("--host", "127.0.0.1")
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


def new_tenant(node, name, *settings, programs=None):
    """A tenant and its key, once the running server knows them and the programs."""
    key = node.tenant(name, *settings, programs=programs)
    with node.http(key) as http:
        eventually(lambda: http.get("/v1/models").status_code == 200)
    return key


def deploy(node, tenant, key, name, text):
    node.deploy(tenant, name, text)
    with node.http(key) as http:
        eventually(lambda: http.post(f"/v1/programs/{name}").status_code != 404)


# ---- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer x", "Basic eDp5", "Bearer rk_" + "a" * 62])
def test_requests_without_a_good_key_are_refused_in_openais_shape(node, authorization):
    headers = {"authorization": authorization} if authorization else {}
    answer = httpx.post(node.server.url + "/v1/chat/completions", headers=headers, content=b"{}")
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key" and error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


def test_where_keys_are_needed_any_page_may_ask_with_one(node):
    page = {"origin": "https://app.example"}
    before = httpx.options(node.server.url + "/v1/models", headers={**page, "access-control-request-method": "GET"})
    assert before.status_code == 204 and before.headers["access-control-allow-origin"] == "*"
    refused = httpx.get(node.server.url + "/v1/models", headers=page)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_the_official_client_sees_an_authentication_error(node):
    with pytest.raises(openai.AuthenticationError):
        node.client("rk_wrong").models.list()


def test_a_revoked_key_ends_and_its_tenants_other_key_goes_on(node):
    first = new_tenant(node, "revoking")
    second = node.key("revoking")
    eventually(lambda: node.http(second).get("/v1/models").status_code == 200)
    node("key", "revoke", first.split("_")[1])
    eventually(lambda: node.http(first).get("/v1/models").status_code == 401)
    assert node.http(second).get("/v1/models").status_code == 200


def test_a_key_is_good_for_its_scopes_alone(node):
    new_tenant(node, "scoped")
    key = node.key("scoped", "--scopes", "usage")
    answer = eventually(lambda: (a := node.http(key).get("/v1/models")).status_code != 401 and a)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "permission_denied"
    assert node.http(node.admin).get("/v1/models").status_code == 403, "the node's key is no tenant's"


# ---- limits --------------------------------------------------------------------------------------------


def test_requests_a_minute_are_counted_told_and_refused(node):
    key = new_tenant(node, "counted", "--requests-per-minute", 3, programs={"hi": nodes.says("hi")})
    seen = []
    with node.http(key) as http:
        while True:
            answer = http.post("/v1/programs/hi")
            seen.append(answer)
            if answer.status_code == 429:
                break
            assert answer.status_code == 200 and answer.text == "hi"
    assert len(seen) <= 5
    assert [a.headers["x-ratelimit-limit-requests"] for a in seen] == ["3"] * len(seen)
    left = [int(a.headers["x-ratelimit-remaining-requests"]) for a in seen]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    last = seen[-1]
    assert 1 <= int(last.headers["retry-after"]) <= 20
    assert last.headers["x-ratelimit-reset-requests"].endswith("s")
    assert last.json()["error"]["code"] == "rate_limit_exceeded"
    assert "x-should-retry" not in last.headers


def test_the_official_client_tries_again_after_a_429(node):
    """Two seconds bring one request more: who stands still so long between two requests sees none refused."""
    key = new_tenant(node, "retrying", "--requests-per-minute", 30, programs={"hi": nodes.says("hi")})
    client = node.client(key, max_retries=5)

    def meets_one():
        with node.http(key) as http:
            while http.post("/v1/programs/hi").status_code != 429:
                pass
        before = node.server.metric("realm_requests_refused_total", node.admin)
        answer = client.chat.completions.create(model="smol", messages=HELLO, max_tokens=2)
        assert answer.choices[0].finish_reason == "length"
        return node.server.metric("realm_requests_refused_total", node.admin) > before

    eventually(meets_one)


def test_tokens_a_minute_are_held_to(node):
    key = new_tenant(node, "tokens", "--tokens-per-minute", 300)
    client = node.client(key)
    raw = client.chat.completions.with_raw_response.create(model="smol", messages=HELLO, max_tokens=20)
    used = raw.parse().usage.total_tokens
    assert int(raw.headers["x-ratelimit-limit-tokens"]) == 300
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(300 // used + 100):  # five tokens more come every second
            client.chat.completions.create(model="smol", messages=HELLO, max_tokens=20)
    assert refused.value.response.headers["retry-after"]
    assert "tokens" in str(refused.value)


def test_requests_at_once_are_held_to(node):
    key = new_tenant(node, "single", "--concurrent-requests", 1)
    client = node.client(key)
    stream = client.chat.completions.create(model="smol", messages=HELLO, max_tokens=4000, stream=True,
                                            extra_body={"ignore_eos": True})
    next(iter(stream))
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="smol", messages=HELLO, max_tokens=1)
    stream.close()
    eventually(lambda: node.http(key).post("/v1/chat/completions", json={
        "model": "smol", "messages": HELLO, "max_tokens": 1}).status_code == 200)


def test_a_spent_budget_says_that_trying_again_is_useless(node):
    key = new_tenant(node, "spent", "--tokens-per-day", 900)
    client = node.client(key, max_retries=3)
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(40):
            client.chat.completions.create(model="smol", messages=HELLO, max_tokens=1)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert refused.value.code == "insufficient_quota"
    refusals = node.server.metric(r'realm_requests_total\{tenant="spent",.*status="4xx"\}', node.admin)
    assert refusals == 1, "the client did not try again"


def total_of(node, tenant):
    row = node.usage("--tenant", tenant, "--by", "tenant")[0]
    return row["prompt_tokens"] + row["completion_tokens"]


def test_the_last_answer_of_a_budget_is_cut_at_its_last_token(node):
    budget = 80
    key = new_tenant(node, "last", "--tokens-per-day", budget)
    client = node.client(key, max_retries=3)
    answer = client.chat.completions.create(model="smol", messages=HELLO, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens > 10
    assert answer.usage.total_tokens == budget, "no max_tokens, and it began although its context has no room left"
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="smol", messages=HELLO, max_tokens=1)
    assert refused.value.code == "insufficient_quota" and "is spent" in str(refused.value)
    assert total_of(node, "last") == budget


def test_a_prompt_that_a_budget_has_no_room_for_takes_nothing(node):
    key = new_tenant(node, "wordy", "--tokens-per-day", 60)
    client = node.client(key, max_retries=3)
    long = [{"role": "user", "content": "hello " * 100}]
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="smol", messages=long, max_tokens=1)
    assert refused.value.code == "insufficient_quota" and "fewer tokens left" in str(refused.value)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert total_of(node, "wordy") == 0
    assert node.server.metric(r'realm_requests_refused_total\{tenant="wordy",reason="budget"\}', node.admin) == 1
    assert client.completions.create(model="smol", prompt="Hi", max_tokens=1).usage.total_tokens > 0


def test_choices_pay_for_their_prompt_once_and_share_what_is_left(node):
    budget = 400
    key = new_tenant(node, "choosing", "--tokens-per-day", budget)
    answer = node.client(key).chat.completions.create(model="smol", messages=HELLO, n=4, max_tokens=300,
                                                      extra_body={"ignore_eos": True})
    assert [c.finish_reason for c in answer.choices] == ["length"] * 4
    assert answer.usage.total_tokens == budget == total_of(node, "choosing")


def test_a_budget_is_not_passed_by_one_token_by_many_at_once(node):
    budget = 4000
    key = new_tenant(node, "frugal", "--tokens-per-day", budget)
    body = {"model": "smol", "messages": HELLO, "max_tokens": 30, "ignore_eos": True}

    def ask():
        with node.http(key) as http:
            while (answer := http.post("/v1/chat/completions", json=body)).status_code == 200 or \
                    answer.headers.get("x-should-retry") != "false":
                assert answer.status_code in (200, 429)
        assert "fewer tokens left" in answer.text or "is spent" in answer.text or "is used up" in answer.text

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    used = total_of(node, "frugal")
    assert used <= budget
    with node.http(key) as http:  # the rest, which had no room for a chat's prompt, token by token
        while http.post("/v1/completions", json={"model": "smol", "prompt": [5], "max_tokens": 1}).status_code == 200:
            pass
    assert total_of(node, "frugal") == budget


# Opens a session on the default model, feeds one token, then generates or steps for as long as it may.
GREEDY = nodes.program(
    '(import "realm" "model_open" (func $model (param i32 i32) (result i32)))'
    '(import "realm" "session_open" (func $open (param i32 i32 i32) (result i32)))'
    '(import "realm" "feed" (func $feed (param i32 i32 i32) (result i32)))'
    '(import "realm" "step" (func $step (param i32 i32) (result i32)))',
    "\\05\\00\\00\\00",
    """(local $s i32)
    (local.set $s (call $open (call $model (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
    (drop (call $feed (local.get $s) (i32.const 0) (i32.const 1)))
    (loop $on (br_if $on (i32.ge_s (local.tee $size (call $step (local.get $s) (i32.const -1))) (i32.const 0))))
    (local.get $size)""")


def test_a_program_of_the_tenants_own_is_cut_off_at_the_budgets_last_token(node):
    budget = 300
    key = new_tenant(node, "greedy", "--tokens-per-day", budget, "--cpu-ms", 60000)
    node.deploy("greedy", "greedy", GREEDY)
    answers = []

    def call():
        with node.http(key) as http:
            answers.append(eventually(lambda: (a := http.post("/v1/programs/greedy")).status_code != 404 and a))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {a.status_code for a in answers} == {429}
    assert {a.json()["error"]["code"] for a in answers} <= {"insufficient_quota", "rate_limit_exceeded"}
    assert any("step: the budget of tokens is used up" in a.text for a in answers)
    assert total_of(node, "greedy") == budget
    assert {row["model"] for row in node.usage("--tenant", "greedy")} == {"smol"}, "the one model that it used"


# Feeds ten tokens to a session on the default model, and answers.
FEEDS = nodes.program(
    nodes.SAY +
    '(import "realm" "model_open" (func $model (param i32 i32) (result i32)))'
    '(import "realm" "session_open" (func $open (param i32 i32 i32) (result i32)))'
    '(import "realm" "feed" (func $feed (param i32 i32 i32) (result i32)))',
    "\\05\\00\\00\\00" * 10 + "fed",
    """(local $s i32)
    (local.set $s (call $open (call $model (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
    (drop (call $feed (local.get $s) (i32.const 0) (i32.const 10)))
    (call $say (i32.const 40) (i32.const 3))""")


def test_every_choice_of_a_tenants_own_chat_pays_for_what_it_feeds(node):
    key = new_tenant(node, "feeding")
    node.deploy("feeding", "chat", FEEDS)
    ask = lambda: node.client(key).chat.completions.create(model="smol", messages=HELLO, n=3, max_tokens=1)
    eventually(lambda: ask().choices[0].message.content == "fed")
    before = total_of(node, "feeding")
    answer = ask()
    assert [c.message.content for c in answer.choices] == ["fed"] * 3
    assert answer.usage.prompt_tokens == 30 == total_of(node, "feeding") - before


def test_models_that_a_tenant_may_not_use_are_not_there(node):
    key = new_tenant(node, "narrow", "--models", "other")
    client = node.client(key)
    assert list(client.models.list()) == []
    told = []
    for name in "smol", "missing":
        with pytest.raises(openai.NotFoundError) as e:
            client.models.retrieve(name)
        told.append(str(e.value).replace(name, "NAME"))
        with pytest.raises(openai.NotFoundError) as e:
            client.chat.completions.create(model=name, messages=HELLO)
        told.append(str(e.value).replace(name, "NAME"))
        assert e.value.code == "model_not_found"
    assert told[:2] == told[2:], "what is not allowed reads as what is missing"


def test_a_changed_limit_holds_for_the_running_server(node):
    key = new_tenant(node, "changing")
    with node.http(key) as http:
        assert "x-ratelimit-limit-requests" not in http.post("/v1/programs/none").headers
        node("tenant", "set", "changing", "--programs", "none")
        body = {"model": "smol", "messages": HELLO, "max_tokens": 1}
        refused = eventually(lambda: (a := http.post("/v1/chat/completions", json=body)).status_code != 200 and a)
        assert refused.status_code == 404, "chat is a program like any other"
        node("tenant", "set", "changing", "--programs", "all")
        eventually(lambda: http.post("/v1/chat/completions", json=body).status_code == 200)
        node("tenant", "delete", "changing")
        eventually(lambda: http.post("/v1/chat/completions", json=body).status_code == 401)


# ---- programs and state ---------------------------------------------------------------------------------


def test_a_tenants_own_chat_takes_the_built_in_ones_place_and_nobody_elses(node):
    ours, theirs = new_tenant(node, "own-chat"), new_tenant(node, "plain-chat")
    node.deploy("own-chat", "chat", nodes.says("ours"))
    body = {"model": "smol", "messages": HELLO, "max_tokens": 4, "temperature": 0}

    def text(key):
        return node.http(key).post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    eventually(lambda: text(ours) == "ours")
    assert text(theirs) != "ours"
    assert node.http(theirs).post("/v1/programs/chat").status_code == 404


def test_state_is_the_tenants_own_and_survives_a_restart(realm, smollm2, tmp_path):
    with nodes.node(realm, tmp_path / "data", smollm2) as n:
        keys = [n.tenant(name) for name in ("one", "two")]
        for name in "one", "two":
            n.deploy(name, "keep", nodes.KEEPS)
            n.deploy(name, "recall", nodes.RECALLS)
        n.start()
        assert n.http(keys[0]).post("/v1/programs/keep", content=b"secret of one").status_code == 204
        assert n.http(keys[0]).post("/v1/programs/recall").text == "secret of one"
        assert n.http(keys[1]).post("/v1/programs/recall").status_code == 404
        assert n.server.stop() == 0
        n.start()
        assert n.http(keys[0]).post("/v1/programs/recall").text == "secret of one"
        n("tenant", "delete", "one")
        eventually(lambda: n.http(keys[0]).post("/v1/programs/recall").status_code == 401)
        assert n.server.stop() == 0
        n.start()
        assert n.server.stop() == 0
        assert b"secret of one" not in b"".join(f.read_bytes() for f in (tmp_path / "data").glob("state.db*"))


# ---- usage ----------------------------------------------------------------------------------------------


def test_usage_is_on_the_disk_before_an_answer_ends(realm, smollm2, tmp_path):
    with nodes.node(realm, tmp_path / "data", smollm2) as n:
        key = n.tenant("acme")
        n.deploy("acme", "hi", nodes.says("hi"))
        n.start()
        client = n.client(key)
        chat = client.chat.completions.create(model="smol", messages=HELLO, max_tokens=5).usage
        last = None
        for last in client.chat.completions.create(model="smol", messages=HELLO, max_tokens=7, stream=True,
                                                   stream_options={"include_usage": True}):
            pass
        vectors = client.embeddings.create(model="smol", input=["a", "b c"]).usage
        assert n.http(key).post("/v1/programs/hi").text == "hi"
        n.kill()
        rows = {r["program"]: r for r in n.usage("--by", "tenant,key,model,program")}
        assert rows["chat"]["requests"] == 2 and rows["chat"]["key"] == key.split("_")[1]
        assert rows["chat"]["prompt_tokens"] == chat.prompt_tokens + last.usage.prompt_tokens
        assert rows["chat"]["completion_tokens"] == chat.completion_tokens + last.usage.completion_tokens
        assert rows["embeddings"]["prompt_tokens"] == vectors.prompt_tokens
        assert rows["hi"]["requests"] == 1 and rows["hi"]["model"] == "" and rows["hi"]["version"] == 1


def test_a_client_that_goes_pays_for_what_was_computed(node):
    key = new_tenant(node, "leaving")
    stream = node.client(key).chat.completions.create(model="smol", messages=HELLO, max_tokens=4000, stream=True,
                                                      extra_body={"ignore_eos": True})
    for _, _ in zip(range(20), stream):
        pass
    stream.close()
    row = eventually(lambda: node.usage("--tenant", "leaving", "--by", "tenant"))[0]
    assert row["errors"] == 1 and 15 <= row["completion_tokens"] < 4000 and row["prompt_tokens"] > 10


# ---- without keys, and other addresses -------------------------------------------------------------------


def test_a_new_folder_serves_this_machine_until_there_is_a_key(realm, smollm2, tmp_path):
    with nodes.node(realm, tmp_path / "data", smollm2) as n:
        n.start()
        body = {"model": "smol", "messages": HELLO, "max_tokens": 2}
        assert n.http().post("/v1/chat/completions", json=body).status_code == 200
        assert n.usage("--by", "tenant")[0]["tenant"] == "default"
        key = n.key("default")
        eventually(lambda: n.http().post("/v1/chat/completions", json=body).status_code == 401)
        assert n.http(key).post("/v1/chat/completions", json=body).status_code == 200
        n("key", "revoke", key.split("_")[1])
        eventually(lambda: n.http(key).post("/v1/chat/completions", json=body).status_code == 401)
        assert n.http().post("/v1/chat/completions", json=body).status_code == 401, "revoking opens nothing"


def test_other_addresses_need_a_key_in_the_folder(realm, smollm2, tmp_path):
    with nodes.node(realm, tmp_path / "data", smollm2) as n:
        arguments = ("serve", "--port", "0", "--model", smollm2, "--kv-memory", "64m", "--data", tmp_path / "data",
                     "--host", "0.0.0.0")
        refused = n(*arguments, check=False)
        assert refused.returncode == 1 and b"without keys only this machine may be served" in refused.stderr
        key = n.tenant("acme")
        n.start("--host", "0.0.0.0")
        assert httpx.get(f"http://127.0.0.1:{n.server.port}/v1/models",
                         headers={"authorization": f"Bearer {key}"}).status_code == 200
        busy = n(*arguments, check=False)
        assert busy.returncode == 1 and b"another server uses the data folder" in busy.stderr


# ---- bearer tokens ---------------------------------------------------------------------------------------


def token(secret, **claims):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    text = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + "." + part(
        json.dumps({"exp": time.time() + 600, **claims}).encode())
    return text + "." + part(hmac.new(secret, text.encode(), hashlib.sha256).digest())


def test_bearer_tokens_name_their_tenant(realm, smollm2, tmp_path):
    secret = b"0123456789abcdef0123456789abcdef"
    (tmp_path / "secret").write_bytes(secret)
    with nodes.node(realm, tmp_path / "data", smollm2) as n:
        n("tenant", "create", "acme")
        n.start("--jwt-secret", tmp_path / "secret", "--jwt-issuer", "us", "--jwt-audience", "realm")
        good = {"iss": "us", "aud": "realm", "tenant": "acme"}
        client = n.client(token(secret, **good))
        assert client.chat.completions.create(model="smol", messages=HELLO, max_tokens=2).usage.completion_tokens == 2
        assert n.usage("--by", "tenant,key")[0]["key"] == "jwt"
        for wrong in ({**good, "aud": "other"}, {**good, "iss": "them"}, {**good, "tenant": "globex"},
                      {**good, "exp": time.time() - 600}, {**good, "tenant": "../acme"}):
            assert n.http(token(secret, **wrong)).get("/v1/models").status_code == 401, wrong
        assert n.http(token(b"x" * 32, **good)).get("/v1/models").status_code == 401
        assert n.http(token(secret, **good, scope="usage")).get("/v1/models").status_code == 403
        assert n.http().get("/v1/models").status_code == 401, "tokens are credentials"


# ---- the quickstart ---------------------------------------------------------------------------------------


def test_the_quickstart_with_two_tenants_does_what_it_says(realm, smollm2):
    script = pathlib.Path(__file__).resolve().parents[2] / "examples" / "two-tenants" / "run.sh"
    if not (realm.parent / "guest" / "poet.wasm").exists():
        pytest.skip("the examples' programs are not built beside this realm")
    done = subprocess.run([script, smollm2], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "REALM_BUILD": str(realm.parent)})
    assert done.returncode == 0, done.stderr
    assert "there is no program 'verse'" in done.stdout, "the other's program is not there"
    assert '"city":' in done.stdout and "too many requests a minute" in done.stdout
    assert done.stdout.count("Paris") == 3, "two of globex's, and acme's after globex was refused"
    rows = done.stdout[done.stdout.index("tenant,model"):].splitlines()
    assert [row.split(",")[:5] for row in rows[1:]] == [
        ["acme", "small", "chat", "0", "1"], ["acme", "small", "verse", "1", "1"],
        ["globex", "small", "chat", "0", "2"], ["globex", "small", "form", "1", "1"]]


# ---- many at once ------------------------------------------------------------------------------------------


def test_tenants_at_once_are_billed_for_their_own(node):
    names = [f"crowd-{i}" for i in range(6)]
    keys = {name: new_tenant(node, name) for name in names}
    told = {}

    def ask(index, name):
        client = node.client(keys[name])
        usages = [client.chat.completions.create(model="smol", messages=HELLO + HELLO * index, max_tokens=3 + index).usage
                  for _ in range(3)]
        told[name] = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(names)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    rows = {r["tenant"]: r for r in node.usage("--by", "tenant")}
    assert {name: (rows[name]["prompt_tokens"], rows[name]["completion_tokens"]) for name in names} == told
