"""/openapi.json is true: every path and method that it names answers and no other does, a request's declared fields are
taken and held to what is declared, undeclared ones are refused, and answers are of the declared shapes. docs/API.md
says the same."""
import importlib.util
import json
import pathlib

import httpx
import jsonschema
import pytest

import nodes
from nodes import eventually

ROOT = pathlib.Path(__file__).resolve().parents[2]
METHODS = ("get", "post", "put", "patch", "delete")
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory):
    with nodes.node(realm, tmp_path_factory.mktemp("node") / "data", smollm2) as n:
        n.key_of = n.tenant("one")
        n.deploy("one", "smol", nodes.says("word"))
        n.admin = n.key(None)
        n.start()
        with n.http(n.key_of) as http:
            eventually(lambda: http.post("/v1/programs/smol").status_code == 200)
            n.api = http.get("/openapi.json").json()
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


def path_with(path, **parts):
    for name, value in {"name": "smol", "tenant": "one", "key": "none", "program": "smol", **parts}.items():
        path = path.replace("{" + name + "}", value)
    return path


def check(api, schema, value):
    jsonschema.validate(value, {**schema, "components": api["components"]})


REQUESTS = {
    "/v1/chat/completions": {"model": "smol", "messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"model": "smol", "prompt": "x", "max_tokens": 2},
    "/v1/embeddings": {"model": "smol", "input": "x"},
}


def test_every_path_and_method_answers_and_no_other_does(node):
    for path, operations in node.api["paths"].items():
        for method in METHODS:
            # the administrator's own key of a tenant that is not there: nothing is changed by asking
            key = node.admin if path.startswith("/admin/") else node.key_of
            url = path_with(path, tenant="nobody")
            with node.http(key) as http:
                answer = http.request(method.upper(), url)
            assert (answer.status_code != 405) == (method in operations), (method, path, answer.text)
            if method not in operations:
                allowed = {m.strip().lower() for m in answer.headers["allow"].split(",")}
                assert allowed - {"head"} == set(operations), path


def test_answers_are_of_the_declared_shapes(node):
    seen = 0
    for path, operations in node.api["paths"].items():
        if path.startswith("/admin/") or path == "/v1/ws":
            continue
        with node.http(node.admin if path == "/metrics" else node.key_of) as http:
            for method, operation in operations.items():
                answer = http.request(method.upper(), path_with(path), json=REQUESTS.get(path))
                declared = operation["responses"].get(str(answer.status_code))
                assert declared, (method, path, answer.status_code, answer.text)
                kind = answer.headers["content-type"].partition(";")[0]
                schema = declared["content"][kind]["schema"]
                check(node.api, schema, answer.json() if kind == "application/json" else answer.text)
                seen += 1
    assert seen >= 11


def test_events_of_streams_are_of_the_declared_shape(node):
    with node.http(node.key_of) as http:
        text = http.post("/v1/chat/completions", json={**REQUESTS["/v1/chat/completions"], "stream": True}).text
    events = [e.removeprefix("data: ") for e in text.split("\n\n") if e]
    assert events.pop() == "[DONE]" and len(events) > 2
    content = node.api["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    for event in events:
        check(node.api, content["text/event-stream"]["schema"], json.loads(event))


def test_errors_are_of_the_declared_shape(node):
    error = node.api["components"]["schemas"]["Error"]
    for path, operations in node.api["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    wrong = [("GET", "/nothing", {}, 404), ("PUT", "/health", {}, 405), ("GET", "/v1/models", {}, 401), ("POST", "/v1/embeddings", {}, 401),
             ("GET", "/v1/models/other", {"authorization": f"Bearer {node.key_of}"}, 404),
             ("POST", "/v1/completions", {"authorization": f"Bearer {node.key_of}"}, 400),
             ("GET", "/admin/v1/tenants", {"authorization": f"Bearer {node.key_of}"}, 403),
             ("GET", "/v1/models", {"authorization": f"Bearer {node.admin}"}, 403)]
    for method, path, headers, status in wrong:
        answer = httpx.request(method, node.server.url + path, headers=headers)
        assert answer.status_code == status, (method, path, answer.text)
        check(node.api, error, answer.json())


def schema_of(node, reference):
    return node.api["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


def admin_operations(node):
    return {(method, path): operation for path, operations in node.api["paths"].items() if path.startswith("/admin/")
            for method, operation in operations.items()}


def test_calls_of_the_admin_api_take_and_answer_what_is_declared(node):
    said = {}

    def call(method, path, body=None, content=None, query=None, **parts):
        operation = admin_operations(node)[method, "/admin/v1/" + path]
        url = path_with("/admin/v1/" + path, **parts)
        if body is not None:
            check(node.api, operation["requestBody"]["content"]["application/json"]["schema"], body)
        assert set(query or {}) <= {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
        answer = http.request(method.upper(), url, json=body, content=content, params=query)
        declared = operation["responses"][str(answer.status_code)]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        check(node.api, declared[kind]["schema"], answer.json() if kind == "application/json" else answer.text)
        said.setdefault((method, "/admin/v1/" + path), answer)
        return answer.json() if kind == "application/json" else answer.text

    program, one = "tenants/{tenant}/programs/{program}", {"tenant": "shaped", "program": "hi"}
    with node.http(node.admin) as http:
        call("post", "tenants", {"name": "shaped", "settings": {"weight": 2, "models": ["smol"], "tokens_per_day": None}})
        call("get", "tenants", query={"limit": 2})
        call("get", "tenants/{tenant}", **one)
        call("patch", "tenants/{tenant}", {"priority": "high", "capabilities": ["models"], "weight": None}, **one)
        key = call("post", "keys", {"tenant": "shaped", "scopes": ["usage", "inference"], "name": "k", "expires": "30d"})
        call("post", "keys", {"admin": True})
        assert len(call("get", "keys", query={"tenant": "shaped"})["data"]) == 1
        for word in "one", "two":
            call("post", program, content=nodes.says(word).encode(), query={"note": word}, **one)
        node.http(key["key"]).post("/v1/programs/hi")
        for path in "programs", "tenants/{tenant}/programs", program:
            assert call("get", path, **one)["data"]
        call("put", program + "/route", [{"version": 1, "percent": 25}, {"version": 2, "percent": 75}], **one)
        call("post", program + "/rollback", {}, **one)
        call("post", program + "/rollback", {"to": 2}, **one)
        for query in {}, {"format": "json"}, {"format": "json", "by": "tenant,day", "tenant": "shaped"}, {"limit": 1}:
            call("get", "usage", query=query)
        call("delete", "keys/{key}", key=key["id"])
        call("delete", program, **one)
        call("delete", "tenants/{tenant}", **one)
    assert set(said) == set(admin_operations(node)), "every one was called"


def test_bodies_of_the_admin_api_are_held_to_what_is_declared(node):
    good = {"TenantRequest": {"name": "never"}, "SettingsChange": {}, "KeyRequest": {"tenant": "one"}, "RollbackRequest": {},
            "RouteRequest": [{"version": 1, "percent": 100}]}
    seen = set()
    for (method, path), operation in admin_operations(node).items():
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if not body:
            continue
        name = body["schema"]["$ref"].rpartition("/")[2]
        seen.add(name)
        with node.http(node.admin) as http:
            def refused(value):
                answer = http.request(method.upper(), path_with(path), json=value)
                return answer.status_code == 400
            schema = schema_of(node, body["schema"])
            if schema["type"] == "array":
                for wrong in [], {}, [{"version": 1}], [{"version": 1, "percent": 100, "more": 1}], [{"version": 0, "percent": 100}]:
                    assert refused(wrong), wrong
                    with pytest.raises(jsonschema.ValidationError):
                        check(node.api, schema, wrong)
                continue
            assert schema["additionalProperties"] is False
            for wrong in [], {**good[name], "unknown": 1}, {**good[name], next(iter(schema["properties"])): {}}:
                assert refused(wrong), (name, wrong)
                with pytest.raises(jsonschema.ValidationError):
                    check(node.api, schema, wrong)
            for field in schema.get("required", []):
                assert refused({k: v for k, v in good[name].items() if k != field}), field
    assert seen == set(good)


def test_settings_are_held_to_their_limits(node):
    change = node.api["components"]["schemas"]["SettingsChange"]
    with node.http(node.admin) as http:
        def takes(value):
            return http.patch("/admin/v1/tenants/one", json=value).status_code == 200
        for field, about in change["properties"].items():
            assert about["description"] and takes({field: None})
            if "default" in about:
                assert http.get("/admin/v1/tenants/one").json()["settings"][field] == about["default"], field
            for limit, beyond in (("minimum", -1), ("maximum", 1)):
                if limit in about:
                    assert takes({field: about[limit]}) and not takes({field: about[limit] + beyond}), (field, limit)
            for word in about.get("enum", []):
                assert takes({field: word})
            assert not takes({field: {}})
            assert takes({field: None})


def test_scopes_are_as_declared(node):
    """Of a tenant's own keys, only those with the declared scope get as far as to what is there or not."""
    with node.http(node.admin) as http:
        keys = {scope: http.post("/admin/v1/keys", json={"tenant": "one", "scopes": scope}).json()["key"]
                for scope in ("deploy", "usage")}
    for (method, path), operation in admin_operations(node).items():
        if (method, path) == ("delete", "/admin/v1/tenants/{tenant}/programs/{program}"):
            path = path.replace("{program}", "missing")
        for scope, key in keys.items():
            with node.http(key) as http:
                answer = http.request(method.upper(), path_with(path), content=b"{")
                assert (answer.status_code != 403) == (scope == operation["x-scope"]), (method, path, scope, answer.text)


def properties(node, path):
    body = node.api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return node.api["components"]["schemas"][body["$ref"].rpartition("/")[2]]


def refusal(http, path, change):
    answer = http.post(path, json={**REQUESTS[path], **change})
    return answer.json()["error"] if answer.status_code == 400 else None


@pytest.mark.parametrize("path", REQUESTS)
def test_requests_are_as_declared(node, path):
    schema = properties(node, path)
    assert schema["additionalProperties"] is False
    check(node.api, schema, REQUESTS[path])
    every = set().union(*(properties(node, p)["properties"] for p in REQUESTS))
    with node.http(node.key_of) as http:
        for field in every | {"temprature", "Model"}:
            value = 1 if field == "max_tokens" else None # without it a chat has the whole context
            error = refusal(http, path, {field: value}) if field not in schema["required"] else None
            if field in schema["properties"]:
                assert error is None or error["code"] != "unknown_parameter", field
            else:
                assert error and error["code"] == "unknown_parameter" and error["param"] == field
        for field in schema["required"]:
            error = refusal(http, path, {field: None})
            assert error["code"] == "missing_required_parameter" and error["param"] == field


@pytest.mark.parametrize("path", REQUESTS)
def test_fields_are_held_to_their_types_and_limits(node, path):
    examples = {"string": "word", "boolean": True, "integer": 1, "number": 0.5, "array": [], "object": {}}
    with node.http(node.key_of) as http:
        for field, about in properties(node, path)["properties"].items():
            assert about.get("description"), field
            kinds = about.get("type", list(examples))
            kinds = [kinds] if isinstance(kinds, str) else kinds
            taken = {*kinds, *(["integer"] if "number" in kinds else [])}
            for kind, value in examples.items():
                # what is refused for its type names the field; a list of other things than texts is one too
                if kind not in taken and kind != "array":
                    error = refusal(http, path, {field: value})
                    assert error and error["param"].split(".")[0] == field, (field, kind)
            for limit, beyond in (("minimum", -1), ("maximum", 1)):
                if limit in about:
                    error = refusal(http, path, {field: about[limit] + beyond})
                    assert error and error["param"] == field, (field, limit)
            if "enum" in about:
                assert refusal(http, path, {field: "none of them"})["param"] == field
                for word in about["enum"]:
                    assert refusal(http, path, {field: word}) is None, (field, word)


def test_the_page_of_the_api_says_what_is_served(node):
    spec = importlib.util.spec_from_file_location("api_docs", ROOT / "scripts" / "api_docs.py")
    api_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api_docs)
    page = api_docs.PAGE.read_text()
    assert page.count("<!-- made from /openapi.json: ") == len(api_docs.TABLES)
    assert api_docs.fill(page, node.api) == page, "run scripts/api_docs.py against a running server"
