#!/usr/bin/env python3
"""Renders snippets.json with Jinja2 as Hugging Face's apply_chat_template sets it up, into golden.json.

    python3 tests/golden/templates/make.py [IN [OUT]]        needs jinja2 (made with 3.1)

The environment is transformers' `_compile_jinja_template` (utils/chat_template_utils.py): an immutable
sandbox with trim_blocks, lstrip_blocks, loop controls, its generation tag, its tojson, raise_exception
and strftime_now. The clock stands still at the context's "__now_ms", in UTC. Where Jinja2 fails, the
golden entry has "error": true; messages differ between the two and are not compared, but for
raise_exception's, which goes to the user ("raised").
"""

import json
import pathlib
import sys
from datetime import datetime, timezone

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


class Raised(Exception):
    pass


class Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: renders its body (and tells transformers where it is)."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment(now):
    def raise_exception(message):
        raise Raised(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = now.strftime
    return env


def render(template, context):
    context = dict(context)
    now = datetime.fromtimestamp(context.pop("__now_ms", 0) / 1000, timezone.utc).replace(tzinfo=None)
    try:
        return {"output": environment(now).from_string(template).render(**context)}
    except Raised as raised:
        return {"raised": str(raised)}
    except Exception as error:
        return {"error": True, "why": f"{type(error).__name__}: {error}"}


def main():
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "snippets.json"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "golden.json"
    cases = json.loads(source.read_text())
    for case in cases:
        case.update(render(case["template"], case.get("context", {})))
    target.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cases)} cases, {sum('error' in c for c in cases)} of them errors, in {target}")


if __name__ == "__main__":
    main()
