"""A node under load: tenants side by side, programs switched while they are called, and kills at any moment."""
import concurrent.futures
import json
import os
import random
import re
import threading
import time

import httpx
import pytest

import nodes
from nodes import eventually

HELLO = [{"role": "user", "content": "Say hello."}]


# ---- isolation --------------------------------------------------------------------------------------------


def everything(node, name, key, others, said):
    """What a tenant does and sees, and what it tries to see of others; every byte that it gets goes to said."""
    secret, ids = f"secret-of-{name}", iter(range(1000))
    with node.http(key) as http:
        def ask(method, path, status, **more):
            answer = http.request(method, path, headers={"x-request-id": f"{name}.{next(ids)}"}, **more)
            said.append(str(answer.headers) + answer.text)
            assert answer.status_code == status, (name, path, answer.text)
            return answer

        def chat(content, **more):
            return ask("POST", "/v1/chat/completions", 200, json={
                "model": "smol", "messages": [{"role": "user", "content": content}], "max_tokens": 3, "temperature": 0,
                **more}).json()

        assert ask("POST", "/v1/programs/me", 200).text == f"i am {name}"
        assert ask("POST", f"/v1/programs/only-{name}", 200).text == f"i am {name}"
        ask("POST", "/v1/programs/keep", 204, content=secret.encode())
        # The same long prompt of everybody's: computed by each tenant once, and never found ready.
        prompt = "A long text that all tenants send, word by word the same. " * 20
        cached = [chat(prompt)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
        assert cached[0] == 0 and cached[1] > 100, cached
        chat(f"Remember: {secret}.")
        chat("What did I tell you to remember?", stream=False)
        ask("POST", "/v1/programs/trap", 500)
        ask("POST", "/v1/programs/missing", 404)
        for other in others:
            there = ask("POST", f"/v1/programs/only-{other}", 404).text.replace(f"only-{other}", "X")
            missing = ask("POST", "/v1/programs/only-nobody", 404).text.replace("only-nobody", "X")
            assert there == missing
            assert ask("GET", f"/admin/v1/tenants/{other}", 404).text.replace(other, "X") == \
                ask("GET", "/admin/v1/tenants/nobody", 404).text.replace("nobody", "X")
        assert ask("POST", "/v1/programs/recall", 200).text == secret
        rows = ask("GET", "/admin/v1/usage?format=json", 200).json()["data"]
        assert {r["tenant"] for r in rows} == {name}
        assert {r["program"] for r in rows} >= {"me", "chat", f"only-{name}"}
        ask("GET", "/v1/models", 200)


def test_sixteen_tenants_at_once_see_nothing_of_each_other(realm, smollm2, tmp_path):
    with nodes.node(realm, tmp_path / "data", smollm2) as node:
        admin = node.key(None)
        node.start()
        names = [f"tenant-{c}" for c in "abcdefghijklmnop"]
        keys = {}
        with node.http(admin) as http:
            for name in names:
                http.post("/admin/v1/tenants", json={"name": name}).raise_for_status()
                keys[name] = http.post("/admin/v1/keys", json={
                    "tenant": name, "scopes": ["inference", "usage"]}).json()["key"]
                for program, text in {"me": nodes.says(f"i am {name}"), f"only-{name}": nodes.says(f"i am {name}"),
                                      "keep": nodes.KEEPS, "recall": nodes.RECALLS,
                                      "trap": nodes.program("", f"secret-of-{name}", "(unreachable)")}.items():
                    http.post(f"/admin/v1/tenants/{name}/programs/{program}", params={"smoke": "none"},
                              content=text).raise_for_status()
        said = {name: [] for name in names}
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(everything, node, name, keys[name],
                                     [names[i - 1], names[(i + 1) % 16]], said[name]) for i, name in enumerate(names)]:
                done.result()
        for name in names:
            text = "\n".join(said[name])
            for other in names:
                if other != name:
                    assert f"secret-of-{other}" not in text and f"i am {other}" not in text
                    assert keys[other] not in text and keys[other].split("_")[1] not in text
        node.server.stop()
        log = node.server.read_log()
        assert "secret-of-" not in log and "Remember" not in log
        assert not any(key in log for key in [admin, *keys.values()])
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        requests = [line for line in lines if re.match(r"tenant-[a-p]\.\d", line.get("request", ""))]
        assert len(requests) > 16 * 15
        assert all(line["tenant"] == line["request"].split(".")[0] for line in requests)


# ---- programs that change while they are called --------------------------------------------------------------


def resident_kib(process):
    with open(f"/proc/{process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def test_deploys_under_load_fail_nothing_mix_nothing_and_keep_nothing(realm, smollm2, tmp_path):
    deploys = int(os.environ.get("REALM_TEST_DEPLOYS", 30))
    gap = float(os.environ.get("REALM_TEST_DEPLOY_GAP", 0))
    with nodes.node(realm, tmp_path / "data", smollm2) as node:
        admin, key = node.key(None), node.tenant("acme")
        node.start()
        stop = threading.Event()

        def deploy(version):
            with node.http(admin) as http:
                answer = http.post("/admin/v1/tenants/acme/programs/chat", content=nodes.says(f"v{version}.")
                                   ).raise_for_status().json()
            assert answer["version"] == version

        def client(stream):
            seen = []
            ending = False
            with node.http(key) as http:
                while not ending:
                    ending = stop.is_set()  # once more after the last deploy
                    answer = http.post("/v1/chat/completions", json={
                        "model": "smol", "messages": HELLO, "n": 3, "stream": stream})
                    assert answer.status_code == 200, answer.text
                    versions = set(re.findall(r"v(\d+)\.", answer.text))
                    assert len(versions) == 1, answer.text
                    seen.append(int(versions.pop()))
            assert seen == sorted(seen), "nobody goes back"
            return seen

        deploy(1)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, stream) for stream in (False, True, False, True)]
            settled = None
            try:
                for version in range(2, deploys + 1):
                    deploy(version)
                    time.sleep(gap)
                    if version == deploys // 3:
                        settled = resident_kib(node.server.process)
            finally:
                stop.set()
            seen = [c.result() for c in clients]
        grown = resident_kib(node.server.process) - settled
        print(f"{deploys} deploys, {sum(map(len, seen))} requests, {grown} KiB more after the first third")
        assert all(s[-1] == deploys for s in seen)
        assert grown < 48 << 10, f"{grown} KiB more"
        assert node.server.metric("realm_sandbox_failures_total", admin) == 0


# ---- kills ---------------------------------------------------------------------------------------------------


class Acknowledged:
    """What a client was told is done, and what it has asked for at most."""

    def __init__(self):
        self.tenants, self.keys, self.programs = set(), set(), {}
        self.done, self.asked = {"requests": 0, "tokens": 0}, {"requests": 0, "tokens": 0}
        self.lock = threading.Lock()


def administer(node, admin, a, round_, stop):
    with node.http(admin) as http:
        for i in range(10000):
            if stop.is_set():
                return
            name = f"r{round_}-{i}"
            if http.post("/admin/v1/tenants", json={"name": name}).status_code == 201:
                a.tenants.add(name)
            key = http.post("/admin/v1/keys", json={"tenant": name})
            if key.status_code == 201:
                a.keys.add(key.json()["id"])
            word = f"{round_}.{i}"
            made = http.post(f"/admin/v1/tenants/{name}/programs/p", content=nodes.says(word))
            if made.status_code == 201:
                a.programs[name] = made.json()["version"]


def use(node, key, a, stop):
    body = {"model": "smol", "messages": HELLO, "max_tokens": 2, "ignore_eos": True}
    with node.http(key) as http:
        while not stop.is_set():
            with a.lock:
                a.asked["requests"] += 1
                a.asked["tokens"] += 2
            answer = http.post("/v1/chat/completions", json=body)
            if answer.status_code == 200:
                with a.lock:
                    a.done["requests"] += 1
                    a.done["tokens"] += answer.json()["usage"]["completion_tokens"]


def suffer(what, *arguments):
    try:
        what(*arguments)
    except httpx.TransportError:
        pass  # it has been killed


def check(node, a):
    tenants = {t["name"] for t in json.loads(node("tenant", "list", "--json"))}
    assert a.tenants <= tenants, a.tenants - tenants
    keys = {k["id"] for k in json.loads(node("key", "list", "--json"))}
    assert a.keys <= keys, a.keys - keys
    programs = {p["tenant"]: {v["version"] for v in p["versions"]}
                for p in json.loads(node("programs", "--json")) if p["program"] == "p"}
    for name, version in a.programs.items():
        assert version in programs.get(name, ()), name
    row = next((r for r in node.usage("--by", "tenant", "--tenant", "busy")), None)
    counted = {"requests": row["requests"], "tokens": row["completion_tokens"]} if row else {"requests": 0, "tokens": 0}
    for what in "requests", "tokens":
        assert a.done[what] <= counted[what] <= a.asked[what], (what, a.done, counted, a.asked)


def test_nothing_acknowledged_is_lost_to_kills_at_random_moments(realm, smollm2, tmp_path):
    kills = int(os.environ.get("REALM_TEST_KILLS", 20))
    chance = random.Random(5)
    with nodes.node(realm, tmp_path / "data", smollm2) as node:
        admin, busy = node.key(None), node.tenant("busy")
        a, starts = Acknowledged(), []
        for round_ in range(kills):
            began = time.monotonic()
            node.start()
            starts.append(time.monotonic() - began)
            stop = threading.Event()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                work = [pool.submit(suffer, administer, node, admin, a, round_, stop)]
                work += [pool.submit(suffer, use, node, busy, a, stop) for _ in range(3)]
                time.sleep(chance.uniform(0.02, 0.6))
                if round_ == kills - 1:  # at the latest now
                    eventually(lambda: a.programs and a.done["requests"] or all(w.done() for w in work))
                node.kill()
                stop.set()
                for w in work:
                    w.result()
            node.server.log.close()
            check(node, a)
        print(f"{kills} kills; {len(a.tenants)} tenants, {len(a.keys)} keys, {len(a.programs)} programs, "
              f"{a.done['requests']} requests acknowledged; longest start {max(starts):.2f} s")
        assert a.programs and a.done["requests"]
        assert max(starts) < 60, "two seconds are the goal; a busy machine has room"
