"""/admin/v1 and the commands with --server: what administrators and tenants' own keys may do, and what they see."""
import csv
import io
import json
import sqlite3

import httpx
import pytest

import nodes
from nodes import eventually


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory):
    with nodes.node(realm, tmp_path_factory.mktemp("admin") / "data", smollm2) as n:
        n.admin = n.key(None)
        n.start()
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


@pytest.fixture(scope="module")
def admin(node):
    with node.http(node.admin) as http:
        yield http


def made(admin, name, scopes="inference", **settings):
    """A new tenant's key; both hold for requests as soon as they have been answered."""
    answer = admin.post("/admin/v1/tenants", json={"name": name, "settings": settings})
    assert answer.status_code == 201, answer.text
    return admin.post("/admin/v1/keys", json={"tenant": name, "scopes": scopes}).json()["key"]


def deploy(http, tenant, name, text, **query):
    return http.post(f"/admin/v1/tenants/{tenant}/programs/{name}", content=text.encode(), params=query)


def test_a_tenant_is_made_shown_changed_and_deleted(node, admin):
    answer = admin.post("/admin/v1/tenants", json={"name": "acme", "settings": {"requests_per_minute": 500}})
    assert answer.status_code == 201 and answer.json()["settings"]["requests_per_minute"] == 500
    assert "acme" in [t["name"] for t in admin.get("/admin/v1/tenants", params={"limit": 1000}).json()["data"]]
    changed = admin.patch("/admin/v1/tenants/acme", json={"weight": 2, "models": ["smol"]}).json()["settings"]
    assert changed["weight"] == 2 and changed["models"] == ["smol"] and changed["requests_per_minute"] == 500
    assert admin.get("/admin/v1/tenants/acme").json()["settings"] == changed
    assert node("tenant", "show", "acme").count("500"), "the command sees the same"
    assert admin.post("/admin/v1/tenants", json={"name": "acme"}).status_code == 400
    assert admin.delete("/admin/v1/tenants/acme").json() == {"name": "acme", "deleted": True}
    assert admin.get("/admin/v1/tenants/acme").status_code == 404


@pytest.mark.parametrize("method, path, body, status, words", [
    ("POST", "tenants", "{", 400, "JSON"),
    ("POST", "tenants", "[]", 400, "object"),
    ("POST", "tenants", "{}", 400, "'name' is missing"),
    ("POST", "tenants", '{"name": "A b"}', 400, "name"),
    ("POST", "tenants", '{"name": "x", "colour": 1}', 400, "colour"),
    ("POST", "tenants", '{"name": "x", "settings": {"weight": "much"}}', 400, "weight"),
    ("PATCH", "tenants/nobody", "{}", 404, "nobody"),
    ("POST", "keys", '{"tenant": "nobody"}', 404, "nobody"),
    ("POST", "keys", "{}", 400, "tenant or admin"),
    ("POST", "keys", '{"admin": true, "expires": "soon"}', 400, "soon"),
    ("POST", "keys", '{"admin": true, "scopes": ["inference", 3]}', 400, "scopes"),
    ("DELETE", "keys/000000000000", None, 404, "000000000000"),
    ("GET", "usage?by=moon", None, 400, "moon"),
    ("GET", "usage?format=xml", None, 400, "xml"),
    ("GET", "usage?from=yesterday", None, 400, "yesterday"),
    ("GET", "usage?tenant=nobody", None, 404, "nobody"),
    ("GET", "tenants?limit=0", None, 400, "limit"),
    ("GET", "tenants?limit=1001", None, 400, "limit"),
    ("GET", "keys?limit=some", None, 400, "limit"),
    ("GET", "usage?limit=-1", None, 400, "limit"),
    ("GET", "keys?after=000000000000", None, 404, "000000000000"),
    ("GET", "programs?after=nobody", None, 400, "tenant/program"),
    ("GET", "programs?after=nobody/hi", None, 404, "nobody"),
    ("GET", "usage?after=5&format=json", None, 400, "last_id"),
    ("GET", 'usage?after=["2026-01-31"]', None, 400, "last_id"),
    ("PUT", "tenants", "{}", 405, "GET, POST"),
    ("GET", "nothing", None, 404, "nothing"),
])
def test_mistakes_are_named(admin, method, path, body, status, words):
    answer = admin.request(method, f"/admin/v1/{path}", content=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"] or words == answer.headers.get("allow")


def test_keys_are_made_used_listed_and_revoked(node, admin):
    key = made(admin, "keyed")
    assert node.http(key).get("/v1/models").status_code == 200, "it holds when it is answered"
    listed = admin.get("/admin/v1/keys", params={"tenant": "keyed"}).json()["data"]
    assert [k["id"] for k in listed] == [key.split("_")[1]] and key not in str(listed)
    assert admin.delete(f"/admin/v1/keys/{listed[0]['id']}").status_code == 200
    assert node.http(key).get("/v1/models").status_code == 401, "and it ends when that is answered"
    second = admin.post("/admin/v1/keys", json={"admin": True, "name": "second"}).json()
    assert second["tenant"] is None and second["scopes"] == ["admin"]
    assert node.http(second["key"]).get("/admin/v1/tenants").status_code == 200


def test_a_program_is_deployed_split_rolled_back_and_removed(node, admin):
    key = made(admin, "deployer")
    with node.http(key) as http:
        def said():
            return http.post("/v1/programs/hi").text

        for version, word in enumerate(("one", "two"), 1):
            answer = deploy(admin, "deployer", "hi", nodes.says(word), note=word)
            assert answer.status_code == 201 and answer.json()["version"] == version
            assert said() == word, "the next request gets it"
        assert deploy(admin, "deployer", "hi", nodes.says("three"), percent=50).json()["percent"] == 50
        assert {said() for _ in range(60)} == {"two", "three"}
        route = admin.put("/admin/v1/tenants/deployer/programs/hi/route", json=[{"version": 1, "percent": 100}])
        assert route.status_code == 200 and said() == "one"
        rolled = admin.post("/admin/v1/tenants/deployer/programs/hi/rollback", json={"to": 3}).json()
        assert rolled["version"] == 3 and said() == "three"
        shown = admin.get("/admin/v1/tenants/deployer/programs/hi").json()["data"][0]
        assert [v["note"] for v in shown["versions"]] == ["", "two", "one"]
        by_version = {v["version"]: v for v in shown["versions"]}
        assert sum(v["requests"] for v in by_version.values()) == 64
        assert by_version[3]["requests"] > 10 and by_version[3]["p95_ms"] > 0
        assert admin.delete("/admin/v1/tenants/deployer/programs/hi").status_code == 200
        assert http.post("/v1/programs/hi").status_code == 404


def test_what_traps_spins_or_asks_for_too_much_is_not_deployed(node, admin):
    key = made(admin, "careful", cpu_ms=300)
    trap = nodes.program("", "", "(unreachable)")
    for text, words in ((trap, "smoke"), (nodes.SPINS, "CPU time"), ("(module)", "export 'memory' is missing"), ("\0asm????", "")):
        answer = deploy(admin, "careful", "bad", text)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert admin.get("/admin/v1/tenants/careful/programs").json()["data"] == []
    assert node.http(key).post("/v1/programs/bad").status_code == 404
    assert deploy(admin, "careful", "bad", trap, smoke="none").status_code == 201
    picky = nodes.RECALLS
    assert deploy(admin, "careful", "picky", picky).status_code == 201, "a program may dislike a body it was not made for"
    assert deploy(admin, "careful", "picky", picky, smoke="{}").status_code == 400, "but not the one that came with it"
    deploy(admin, "careful", "keep", nodes.KEEPS)
    assert node.http(key).post("/v1/programs/picky").status_code == 404, "the smoke test's state was its own"


def test_a_tenants_own_key_manages_its_programs_and_sees_its_usage(node, admin):
    ours, other = made(admin, "own", "inference,deploy,usage"), made(admin, "foreign", "deploy,usage")
    with node.http(ours) as http:
        assert deploy(http, "own", "hi", nodes.says("hi")).status_code == 201
        assert http.post("/v1/programs/hi").text == "hi"
        assert http.get("/admin/v1/tenants/own").json()["name"] == "own"
        rows = http.get("/admin/v1/usage", params={"format": "json", "by": "tenant,program"}).json()["data"]
        assert [(r["tenant"], r["program"], r["requests"]) for r in rows] == [("own", "hi", 1)]
        text = http.get("/admin/v1/usage", params={"by": "tenant"})
        assert text.headers["content-type"].startswith("text/csv")
        assert next(csv.DictReader(io.StringIO(text.text)))["requests"] == "1"
        for method, path in (("GET", "tenants"), ("GET", "keys"), ("GET", "programs"), ("POST", "tenants"), ("POST", "keys"),
                             ("PATCH", "tenants/own"), ("DELETE", "tenants/own")):
            assert http.request(method, f"/admin/v1/{path}", content="{}").status_code == 403, path
    # Whether the other is there or not, the same is said.
    told = []
    for name in "own", "missing":
        with node.http(other) as http:
            for method, path in (("GET", ""), ("GET", "/programs"), ("GET", "/programs/hi"), ("POST", "/programs/hi"),
                                 ("DELETE", "/programs/hi"), ("PUT", "/programs/hi/route"),
                                 ("POST", "/programs/hi/rollback")):
                answer = http.request(method, f"/admin/v1/tenants/{name}{path}", content="{}")
                assert answer.status_code == 404, answer.text
                told.append(answer.text.replace(name, "NAME"))
            answer = http.get("/admin/v1/usage", params={"tenant": name})
            assert answer.status_code == 404
            told.append(answer.text.replace(name, "NAME"))
            answer = http.get("/admin/v1/tenants/foreign/programs", params={"after": f"{name}/hi"})
            assert answer.status_code == 400, "the next page of a tenant's list begins behind one of its own"
            told.append(answer.text.replace(name, "NAME"))
    assert told[:9] == told[9:]


def pages_of(http, path, limit, **query):
    """All items, page by page, and each page's size."""
    items, sizes, after = [], [], None
    while True:
        page = http.get(f"/admin/v1/{path}", params={**query, "limit": limit, **({"after": after} if after else {})}).json()
        assert page["object"] == "list" and len(page["data"]) <= limit
        items += page["data"]
        sizes.append(len(page["data"]))
        after = page["last_id"]
        if not page["has_more"]:
            return items, sizes


def test_lists_come_in_pages(node, admin, there, run):
    names = [f"paged-{i:02}" for i in range(7)]
    for i, name in enumerate(names):
        key = made(admin, name, "inference,deploy")
        for program in ("one", "two")[:1 + i % 2]:
            assert deploy(admin, name, program, nodes.says(program)).status_code == 201
            assert node.http(key).post(f"/v1/programs/{program}").text == program
    for path, query, id_of in (("tenants", {}, lambda t: t["name"]), ("keys", {}, lambda k: k["id"]),
                               ("keys", {"tenant": names[0]}, lambda k: k["id"]),
                               ("programs", {}, lambda p: (p["tenant"], p["program"])),
                               (f"tenants/{names[1]}/programs", {}, lambda p: (p["tenant"], p["program"])),
                               ("usage", {"format": "json"}, str), ("usage", {"format": "json", "by": "program"}, str),
                               ("usage", {"format": "json", "by": "tenant"}, str), ("usage", {"format": "json", "by": "key,day"}, str)):
        whole, sizes = pages_of(admin, path, 1000, **query)
        assert len(sizes) == 1 and whole
        for limit in 1, 2, 3, len(whole):
            items, sizes = pages_of(admin, path, limit, **query)
            assert [id_of(i) for i in items] == [id_of(i) for i in whole], (path, limit)
            assert set(sizes[:-1]) <= {limit} and sizes[-1] > 0
    # one that is made meanwhile hides no other, one that goes takes none along
    first = admin.get("/admin/v1/tenants", params={"limit": 1, "after": "paged-00"}).json()
    assert first["data"][0]["name"] == first["last_id"] == "paged-01" and first["has_more"]
    admin.delete("/admin/v1/tenants/paged-01")
    made(admin, "paged-001")
    after = admin.get("/admin/v1/tenants", params={"limit": 1, "after": first["last_id"]}).json()
    assert after["data"][0]["name"] == "paged-02"
    # a table is whole unless a part is asked for, and says then where it goes on
    table = admin.get("/admin/v1/usage", params={"by": "tenant"})
    assert "x-has-more" not in table.headers
    lines, after = [], None
    while after != "":
        part = admin.get("/admin/v1/usage", params={"by": "tenant", "limit": 2, **({"after": after} if after else {})})
        lines += part.text.splitlines()[1:]
        after = part.headers["x-last-id"] if part.headers["x-has-more"] == "true" else ""
    assert lines == table.text.splitlines()[1:] and len(lines) > 6


def test_pages_of_usage_go_on_behind_the_longest_names(node, admin):
    made(admin, "t" * 63)
    number = admin.get("/admin/v1/tenants/" + "t" * 63).json()["number"]
    with sqlite3.connect(node.folder / "realm.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(usage)")]
        for model in "\u0416" * 64, "\u6f22" * 42, "\\" * 128:  # 128 bytes are the most
            row = dict.fromkeys(columns, 0) | {"day": 20000, "tenant": number, "key": "k" * 12, "model": model, "program": "p" * 63,
                                               "version": 2147483647, "requests": 1}
            database.execute(f"INSERT INTO usage({','.join(row)}) VALUES({','.join('?' * len(row))})", list(row.values()))
    database.close()
    items, sizes = pages_of(admin, "usage", 1, format="json", tenant="t" * 63)
    assert len(items) == 3 and {len(i["model"].encode()) for i in items} == {126, 128} and set(sizes) == {1}


def test_commands_at_a_server_follow_pages(node, admin, there):
    """More than the thousand that a page may have."""
    for i in range(1003):
        assert admin.post("/admin/v1/keys", json={"admin": True, "scopes": "metrics", "name": f"n{i}"}).status_code == 201
    assert len(there("key", "list", "--json").json) == len(json.loads(node("key", "list", "--json"))) > 1003
    for by in "day,tenant,key,model,program", "tenant":
        for format in "json", "csv":
            arguments = ("usage", "--by", by, "--format", format)
            here, away = node(*arguments), there(*arguments).out
            if format == "json":
                assert json.loads(here) == json.loads(away)
            else:
                assert here.splitlines() == away.splitlines()


def test_the_nodes_counters_are_for_its_own_keys(node, admin):
    key = made(admin, "curious", "inference,deploy,usage")
    counting = admin.post("/admin/v1/keys", json={"admin": True, "scopes": "metrics"}).json()["key"]
    for http, status in ((node.http(), 401), (node.http(key), 403), (node.http(counting), 200), (admin, 200)):
        answer = http.get("/metrics")
        assert answer.status_code == status
        assert (status == 200) == ("realm_requests_total" in answer.text)
    assert node.http(counting).get("/admin/v1/tenants").status_code == 403
    for scopes in "metrics", "inference,admin":
        assert admin.post("/admin/v1/keys", json={"tenant": "curious", "scopes": scopes}).status_code == 400
    assert admin.post("/admin/v1/keys", json={"admin": True, "scopes": "inference"}).status_code == 400


def test_keys_without_such_a_scope_and_nobody_get_nowhere(node, admin):
    key = made(admin, "plain")
    assert node.http(key).get("/admin/v1/tenants").status_code == 403
    assert node.http(key).get("/admin/v1/tenants/plain").status_code == 403
    assert node.http().get("/admin/v1/tenants").status_code == 401
    body = b"x" * (8 << 20)
    answer = node.http(key).post("/admin/v1/tenants/plain/programs/p", content=body)
    assert answer.status_code in (403, 413), "and cannot send much"


def test_a_deleted_tenants_state_and_keys_are_gone_at_once(node, admin):
    key = made(admin, "leaver")
    deploy(admin, "leaver", "keep", nodes.KEEPS)
    assert node.http(key).post("/v1/programs/keep", content=b"left behind").status_code == 204
    eventually(lambda: b"left behind" in b"".join(f.read_bytes() for f in node.folder.glob("state.db*")))
    admin.delete("/admin/v1/tenants/leaver")
    assert node.http(key).get("/v1/models").status_code == 401
    again = made(admin, "leaver")
    deploy(admin, "leaver", "recall", nodes.RECALLS)
    assert node.http(again).post("/v1/programs/recall").status_code == 404, "the name is new again, and empty"


def test_a_server_without_a_folder_has_no_administrators(realm, smollm2):
    from serving import serving
    with serving(realm, "--model", smollm2, "--kv-memory", "64m") as s:
        assert httpx.get(s.url + "/admin/v1/tenants").status_code == 403


# ---- the commands over the network ------------------------------------------------------------------------


@pytest.fixture
def there(node, run):
    """there("tenant", "list") runs the program against the server; data folders are out of its reach."""
    def call(*arguments, check=True, key=None):
        env = {"REALM_KEY": key or node.admin, "REALM_DATA": "/nonexistent"}
        return run(*arguments, "--server", node.server.url, check=check, env=env)
    return call


def test_commands_do_the_same_at_a_server(node, there, tmp_path):
    there("tenant", "create", "remote", "--requests-per-minute", 600, "--models", "smol")
    shown = there("tenant", "show", "remote", "--json").json
    assert shown == json.loads(node("tenant", "show", "remote", "--json"))
    there("tenant", "set", "remote", "--weight", 2)
    assert there("tenant", "show", "remote").out == node("tenant", "show", "remote") + "\n"
    assert "remote" in there("tenant", "list").out
    key = there("key", "create", "--tenant", "remote", "--name", "a b&c=d", "--scopes", "inference,deploy").out.strip()
    assert "a b&c=d" in there("key", "list", "--tenant", "remote").out
    for word in "one", "two":
        path = tmp_path / "hi.wat"
        path.write_text(nodes.says(word))
        assert "of program hi" in there("deploy", path, "--tenant", "remote", "--note", f"says {word} & more", key=key).out
        assert node.http(key).post("/v1/programs/hi").text == word
    assert there("rollback", "hi", "--tenant", "remote", key=key).out == "version 1 of program hi serves again\n"
    assert node.http(key).post("/v1/programs/hi").text == "one"
    there("programs", "--tenant", "remote", "--name", "hi", "--route", "1=25,2=75")
    listed = there("programs", "--tenant", "remote", "--name", "hi").out
    assert listed == node("programs", "--tenant", "remote", "--name", "hi") + "\n" and "75%" in listed
    assert there("programs", "--name", "hi", "--json").json == json.loads(node("programs", "--name", "hi", "--json"))
    assert there("programs").out == node("programs") + "\n" and "2, 1 at 75/25 %" in there("programs").out
    exported = there("usage", "--tenant", "remote", "--by", "tenant,program").out
    assert exported.splitlines()[1].startswith("remote,hi,1,2,") and "\nremote,hi,2,1," in exported.replace("\r", "")
    there("programs", "--tenant", "remote", "--name", "hi", "--delete", key=key)
    there("key", "revoke", key.split("_")[1], "--tenant", "remote")
    assert node.http(key).get("/v1/models").status_code == 401
    assert "deleted tenant" in there("tenant", "delete", "remote").out


def test_what_a_server_refuses_is_said(node, there, run, tmp_path):
    for arguments, words in ((("tenant", "show", "nobody"), "there is no tenant 'nobody'"),
                             (("key", "create", "--tenant", "nobody"), "there is no tenant 'nobody'"),
                             (("usage", "--tenant", "nobody"), "there is no tenant 'nobody'")):
        refused = there(*arguments, check=False)
        assert refused.code == 1 and words in refused.err
    assert "not valid" in there("tenant", "list", check=False, key="rk_wrong").err
    path = tmp_path / "bad.wat"
    path.write_text(nodes.program("", "", "(unreachable)"))
    there("tenant", "create", "trapping")
    assert "smoke test failed" in there("deploy", path, "--tenant", "trapping", check=False).err
    assert there("deploy", path, "--tenant", "trapping", "--smoke", "none").code == 0
    url = node.server.url
    for more, words in ((("--server", url), "REALM_KEY"), (("--server", "http://example.com"), "https://"),
                        (("--server", "http://127.0.0.1.example.com"), "https://"),
                        (("--server", url, "--data", tmp_path), "exclude"),
                        (("--server", "http://127.0.0.1:1", "--key-file", path), "127.0.0.1:1")):
        refused = run("tenant", "list", *more, check=False)
        assert refused.code == 1 and words in refused.err, refused.err
