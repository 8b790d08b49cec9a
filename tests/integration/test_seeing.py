"""What operators see of a server: metrics, log lines, traces, the dashboard, `realm top`."""
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import struct
import subprocess
import termios

import httpx
import pytest

import nodes

TRAPS = nodes.program("", "", "unreachable")
SECRET = "the colour of the vault is heliotrope"


@pytest.fixture(scope="module")
def node(realm, smollm2, tmp_path_factory):
    """A node with the tenants acme and bolt that has answered, refused and failed something."""
    folder = tmp_path_factory.mktemp("seen") / "data"
    with nodes.node(realm, folder, smollm2) as n:
        n.admin = n.key(None)
        n.acme, n.bolt = n.tenant("acme"), n.tenant("bolt", "--requests-per-minute", "2")
        n.deploy("acme", "traps", TRAPS)
        n.start("--log-format", "json", "--host", "127.0.0.1")
        n.usage = []
        with n.http(n.acme) as http:
            for _ in range(2):
                n.usage.append(ask(http).json()["usage"])
            n.pieces = stream(http)
            assert http.post("/v1/programs/traps").status_code == 500
        with n.http(n.bolt) as http:
            assert [ask(http, max_tokens=1).status_code for _ in range(3)] == [200, 200, 429]
        yield n
        assert n.server.process.poll() is None, n.server.read_log()


def body(**more):
    return {"model": "smol", "messages": [{"role": "user", "content": SECRET + ". Say hello. " * 20}], "temperature": 0,
            "max_tokens": 8, "ignore_eos": True, **more}


def ask(http, headers=None, **more):
    return http.post("/v1/chat/completions", json=body(**more), headers=headers)


def stream(http, headers=None):
    """The number of pieces of text in a stream."""
    answer = ask(http, headers, stream=True).text
    return sum('"content":"' in line and '"content":""' not in line for line in answer.splitlines())


def metrics_of(node):
    return httpx.get(node.server.url + "/metrics", headers={"authorization": f"Bearer {node.admin}"}).text


def value(text, series):
    found = re.search(re.escape(series) + r" (\S+)$", text, re.M)
    return float(found[1]) if found else None


def families(text):
    """name: kind of everything a /metrics page has."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


# ---- metrics -------------------------------------------------------------------------------------------


def test_counters_agree_with_what_clients_were_told(node):
    text = metrics_of(node)
    acme = '{tenant="acme",model="smol"}'
    assert value(text, "realm_generated_tokens_total" + acme) == 8 * 3
    assert value(text, "realm_prompt_tokens_total" + acme) == 3 * node.usage[0]["prompt_tokens"]
    assert value(text, "realm_cached_prompt_tokens_total" + acme) >= \
        2 * node.usage[1]["prompt_tokens_details"]["cached_tokens"] > 0
    assert value(text, 'realm_prefix_lookups_total{tenant="acme",model="smol",result="miss"}') == 1
    assert value(text, 'realm_prefix_lookups_total{tenant="acme",model="smol",result="hit"}') == 2
    assert value(text, 'realm_sandbox_starts_total{tenant="acme"}') == 4
    assert value(text, 'realm_sandbox_traps_total{tenant="acme"}') == 1
    assert value(text, 'realm_sandbox_failures_total{tenant="acme",reason="TRAPPED"}') == 1
    assert value(text, 'realm_sandbox_cpu_seconds_total{tenant="acme"}') > 0
    assert value(text, 'realm_requests_refused_total{tenant="bolt",reason="requests"}') == 1
    assert value(text, 'realm_requests_total{tenant="bolt",route="/v1/chat/completions",status="2xx"}') == 2
    assert value(text, 'realm_requests_total{tenant="bolt",route="/v1/chat/completions",status="4xx"}') == 1


def test_histograms_count_each_run_and_each_gap(node):
    text = metrics_of(node)
    acme = '{tenant="acme",model="smol"}'
    for family in ("time_to_first_token", "queue", "prefill", "time_per_output_token"):
        assert value(text, f"realm_{family}_seconds_count{acme}") == 3, family
        assert value(text, f"realm_{family}_seconds_sum{acme}") > 0, family
        assert value(text, f'realm_{family}_seconds_bucket{{tenant="acme",model="smol",le="+Inf"}}') == 3
    # Texts that the loop took together are fewer events than gaps.
    assert 7 >= value(text, f"realm_time_between_tokens_seconds_count{acme}") >= node.pieces - 1 > 0
    rows = value(text, 'realm_engine_batch_rows_sum{model="smol"}')
    assert rows == value(text, 'realm_engine_prefilled_tokens_total{model="smol"}') + \
        value(text, 'realm_engine_decoded_tokens_total{model="smol"}')
    assert value(text, 'realm_engine_batch_rows_count{model="smol"}') == \
        value(text, 'realm_engine_iterations_total{model="smol"}')


def test_sessions_and_pages_of_a_tenant_are_seen_while_it_runs(node):
    with node.http(node.acme) as http, node.http(node.admin) as other:
        with http.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=4000)) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()  # kept: the stream is closed with it
            next(lines)
            text = other.get("/metrics").text
    assert value(text, 'realm_tenant_sessions{tenant="acme",model="smol"}') == 1
    assert value(text, 'realm_tenant_kv_pages{tenant="acme",model="smol"}') >= 1
    assert value(text, 'realm_tenant_tokens_running{tenant="acme"}') > 1
    assert value(text, 'realm_tenant_tokens_running{tenant="bolt"}') == 0
    nodes.eventually(lambda: value(metrics_of(node), 'realm_tenant_tokens_running{tenant="acme"}') == 0)
    assert value(text, 'realm_tenant_sessions{tenant="bolt",model="smol"}') is None


def promtool():
    path = os.environ.get("REALM_PROMTOOL") or shutil.which("promtool")
    return path or pytest.skip("promtool is not installed (Debian's package prometheus)")


def test_promtool_takes_the_page(node):
    done = subprocess.run([promtool(), "check", "metrics"], input=metrics_of(node).encode(), capture_output=True)
    assert done.returncode == 0 and not done.stderr, (done.stdout + done.stderr).decode()


# ---- what is made of metrics ---------------------------------------------------------------------------

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"


def queries():
    """(where, PromQL) of everything in deploy/ that asks for metrics."""
    dashboard = json.loads((DEPLOY / "grafana" / "realm.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for expression in re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n +for:", (DEPLOY / "prometheus" / "alerts.yml").read_text()):
        yield "alerts.yml", expression


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_exist(node):
    text = metrics_of(node)
    kinds, labels = families(text), {}
    for name, inside in re.findall(r"^(realm_\w+)(?:{(.*)})? \S+$", text, re.M):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    asked = set()
    for where, query in queries():
        for name, inside in re.findall(r"(realm_\w+)(?:{([^}]*)})?", query):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in kinds or kinds.get(family) == "histogram", f"{where}: there is no {name}"
            known = labels.get(name)
            wanted = set(re.findall(r"(\w+)(?:=~|!=|=)", inside))
            assert known is None or wanted <= known, f"{where}: {name} has no label {wanted - known}"
            asked.add(family if kinds.get(family) == "histogram" else name)
    assert len(asked) > 30
    unseen = {k for k in kinds if k.startswith(("realm_time", "realm_engine", "realm_sandbox_", "realm_prefix", "realm_traces"))} - asked
    assert unseen <= {"realm_engine_iterations_total", "realm_engine_prefilled_tokens_total",
                      "realm_engine_decoded_tokens_total", "realm_sandbox_preemptions_total"}, unseen


def test_promtool_takes_rules_and_configuration():
    for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        done = subprocess.run([promtool(), "check", what, str(DEPLOY / "prometheus" / file)], capture_output=True)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()


# ---- realm top -----------------------------------------------------------------------------------------


def top(node, *arguments, key=True):
    environment = {**os.environ, **({"REALM_KEY": node.admin} if key else {})}
    return subprocess.run([str(node.realm), "top", "--server", node.server.url, "--interval", "0.3", *arguments],
                          capture_output=True, timeout=120, env=environment)


def test_top_says_what_runs_as_json(node):
    with node.http(node.acme) as http:
        with http.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=4000)) as answer:
            lines = answer.iter_lines()  # kept: the stream is closed with it
            next(lines)

            def generating():  # in this very moment
                seen = json.loads(top(node, "--once", "--json").stdout)
                is_busy = seen["models"][0]["generated_tokens_per_second"] > 0 and seen["tenants"][0]["tokens_per_second"] > 0
                return seen if is_busy else None

            seen = nodes.eventually(generating)
            assert seen["tenants"][0]["generated_tokens_per_second"] == 0, "its answer has not ended"
    model = seen["models"][0]
    assert model["model"] == "smol" and model["sessions"] == 1
    assert model["pages"] > model["pages_used"] > 0
    acme = seen["tenants"][0]
    assert acme["tenant"] == "acme" and acme["sessions"] == 1 and acme["pages"] >= 1
    assert {t["tenant"] for t in seen["tenants"]} >= {"acme", "bolt"}


def test_top_is_plain_where_it_is_no_terminal(node):
    out = top(node, "--once").stdout.decode()
    assert "\x1b" not in out
    assert re.search(r"^model +sessions", out, re.M) and re.search(r"^bolt +0 ", out, re.M)


def test_top_wants_a_key_and_says_which(node):
    done = top(node, "--once", key=False)
    assert done.returncode == 1 and b"--scopes metrics" in done.stderr


def test_top_fits_into_a_small_terminal(node):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 40, 0, 0))
    process = subprocess.Popen([str(node.realm), "top", "--server", node.server.url, "--interval", "0.2"], stdout=child,
                               env={**os.environ, "REALM_KEY": node.admin})
    os.close(child)
    seen = b""
    while seen.count(b"\x1b[H\x1b[2J") < 3:
        seen += os.read(parent, 4096)
    process.terminate()
    with contextlib.suppress(OSError):
        while part := os.read(parent, 4096):
            seen += part
    os.close(parent)
    assert process.wait(60) == 0
    assert seen.startswith(b"\x1b[?1049h") and seen.rstrip().endswith(b"\x1b[?1049l")
    screen = re.sub(rb"\x1b\[[?0-9]*[a-zA-Z]", b"", seen.split(b"\x1b[H\x1b[2J")[2]).decode().splitlines()
    assert max(map(len, screen)) <= 40 and len(screen) <= 8 and "model" in "".join(screen)


# ---- log lines -----------------------------------------------------------------------------------------


def test_log_lines_name_request_tenant_and_trace_and_no_key_or_prompt(node):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with node.http(node.acme) as http:
        said = ask(http, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": "traced"})
        assert ask(http, headers={"x-request-id": "untraced", "traceparent": trace}).status_code == 200
        assert http.get("/v1/models", headers={"authorization": "Bearer rk_wrong_" + SECRET}).status_code == 401
    lines = [json.loads(line) for line in node.server.read_log().splitlines()]
    by_request = {line.get("request"): line for line in lines}
    traced, untraced = by_request["traced"], by_request["untraced"]
    assert traced["trace"] == trace and traced["tenant"] == "acme" and "/v1/chat/completions 200" in traced["message"]
    assert re.fullmatch("[0-9a-f]{32}", untraced["trace"]) and untraced["trace"] != trace
    for line in lines:
        assert {"time", "level", "room", "message"} <= set(line)
    log = node.server.read_log()
    answer = said.json()["choices"][0]["message"]["content"]
    for secret in (SECRET, "heliotrope", node.acme, node.bolt, node.admin, node.acme.split("_")[2], answer):
        assert secret not in log
