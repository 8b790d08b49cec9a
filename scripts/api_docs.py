#!/usr/bin/env python3
"""Makes the tables of docs/API.md that say what the server serves, from its own /openapi.json.

    scripts/api_docs.py http://127.0.0.1:8080          rewrites docs/API.md
    scripts/api_docs.py --check http://127.0.0.1:8080  fails if it would change

A table stands between `<!-- made from /openapi.json: NAME -->` and `<!-- end -->`."""
import json
import pathlib
import re
import sys
import urllib.request

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "API.md"


def paths(api):
    """Method and path of everything but administration, which has a table of its own."""
    yield "| path | |"
    yield "| --- | --- |"
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            if not path.startswith("/admin/"):
                yield f"| `{method.upper()} {path}` | {operation['summary']} |"


def limits(schema):
    """"integer, 1 to 128", "mean, last or first"."""
    if "enum" in schema:
        words = [str(w) for w in schema["enum"]]
        return ", ".join(words[:-1]) + " or " + words[-1]
    kind = schema.get("type", "any")
    text = " or ".join(kind) if isinstance(kind, list) else kind
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        text += f", {low} to {high}"
    elif low is not None:
        text += f", from {low}"
    return text


def fields(api):
    """Each field once, with the requests that may have it."""
    known = {}
    for name, short in (("ChatRequest", "chat"), ("CompletionRequest", "completions"), ("EmbeddingsRequest", "embeddings")):
        schema = api["components"]["schemas"][name]
        for field, about in schema["properties"].items():
            words = known.setdefault((field, about.get("description")), (field, [], about))[1]
            words.append(short + (" (required)" if field in schema["required"] else ""))
    yield "| field | of | | |"
    yield "| --- | --- | --- | --- |"
    for field, words, about in known.values():
        usual = f" ({about['default']})" if "default" in about else ""
        yield f"| `{field}` | {', '.join(words)} | {limits(about)}{usual} | {about.get('description', '')} |"


def words_of(api, schema):
    """The fields of a body: `name`, `settings`?."""
    schema = api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array":
        return "a list of " + ", ".join(f"`{name}`" for name in schema["items"]["properties"])
    required = schema.get("required", [])
    return ", ".join(f"`{name}`" + ("" if name in required else "?") for name in schema["properties"])


def admin(api):
    """Every call of the admin API: what it takes and whose key may make it."""
    yield "| call, behind `/admin/v1` | | query | body | scope |"
    yield "| --- | --- | --- | --- | --- |"
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            if not path.startswith("/admin/"):
                continue
            query = ", ".join(f"`{p['name']}`" for p in operation.get("parameters", []) if p["in"] == "query")
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            body = "the module" if "application/wasm" in content else \
                "settings" if schema.get("$ref", "").endswith("/SettingsChange") else words_of(api, schema) if schema else ""
            short = path.removeprefix("/admin/v1")
            yield f"| `{method.upper()} {short}` | {operation['summary']} | {query} | {body} | {operation['x-scope']} |"


def parameters(api):
    """What the admin API's queries may have."""
    known = {}
    for operations in api["paths"].values():
        for operation in operations.values():
            known.update({p["name"]: p for p in operation.get("parameters", []) if p["in"] == "query"})
    yield "| query | | |"
    yield "| --- | --- | --- |"
    for name, about in known.items():
        yield f"| `{name}` | {limits(about['schema'])} | {about['description']} |"


def settings(api):
    """What a tenant may be given."""
    yield "| setting | | usual | |"
    yield "| --- | --- | --- | --- |"
    for name, about in api["components"]["schemas"]["Settings"]["properties"].items():
        yield f"| `{name}` | {limits(about)} | {about.get('default', '')} | {about['description']} |"


TABLES = {"paths": paths, "fields": fields, "admin": admin, "parameters": parameters, "settings": settings}


def fill(page, api):
    def table(match):
        return f"{match[1]}\n" + "\n".join(TABLES[match[2]](api)) + "\n<!-- end -->"

    return re.sub(r"(<!-- made from /openapi\.json: (\w+) -->)\n.*?<!-- end -->", table, page, flags=re.S)


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    with urllib.request.urlopen(arguments[0] + "/openapi.json") as answer:
        api = json.load(answer)
    page = PAGE.read_text()
    made = fill(page, api)
    if "--check" not in sys.argv:
        PAGE.write_text(made)
    elif made != page:
        sys.exit("docs/API.md is not what the server serves: run scripts/api_docs.py against it")


if __name__ == "__main__":
    main()
