#!/usr/bin/env python3
"""The server's speed: its streams beside `realm bench` at the same batch, or beside another server.

    bench/server.py MODEL.gguf --streams 1,8,32               beside `realm bench`
    bench/server.py MODEL.gguf --streams 8,32 --other 9001    beside the server of that port, prompts of 330 tokens
    bench/server.py MODEL.gguf --streams 8,32 --other REALM   the same beside another build's `realm`
    bench/server.py MODEL.gguf --small                        small requests and refused ones on one core, with wrk
    bench/server.py MODEL.gguf --first-byte                   how long small answers take beside 0, 8 and 32 streams
    bench/server.py MODEL.gguf --traces                       what exporting spans costs small requests and streams
    bench/server.py MODEL.gguf --grpc --streams 1,8,32        streams over gRPC beside the same over HTTP/1 (needs grpcio)

Absolute figures drift with the machine, so each repetition measures both sides one after the other, and ratios are
medians of the repetitions' own; `bests` is the ratio of both sides' fastest. The client is bench_server_load, which spends less than a hundredth of a core; the
server is started here and stays idle while the other side is measured.

Beside `realm bench`, a stream's prompt is one token and each writes --tg tokens, as the bench's sessions do. Two
ratios are printed: `steady`, tokens a second while all streams are under way, and `whole`, from the first request to
the last token, with everything that starting a request costs.

Over gRPC the client is Python's grpcio in a process of its own, all streams on one connection. It takes a good part of a core,
which it shares with the model, so what it took is printed beside the rates; what the server's net thread took a token
does not depend on the client.
"""
import argparse
import asyncio
import contextlib
import http.server
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "release"


@contextlib.contextmanager
def serving(model, *arguments, realm=BUILD / "realm"):
    """A server on a free port; gives the port."""
    process = subprocess.Popen([realm, "serve", "--model", f"m={model}", "--port", "0", *arguments],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"serves at .*:(\d+)$", line):
                yield int(found[1]), process.pid
                break
        else:
            sys.exit("the server did not start")
    finally:
        process.terminate()
        process.wait()


def load(port, bodies, streams, seconds, path="/v1/completions"):
    """Keeps streams going; gives what bench_server_load prints."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(body) + "\n" for body in bodies)
        file.flush()
        out = subprocess.run([BUILD / "bench_server_load", "--port", str(port), "--path", path, "--bodies", file.name,
                              "--streams", str(streams), "--seconds", str(seconds)],
                             check=True, stdout=subprocess.PIPE).stdout
    answer = json.loads(out)
    wrong = [r for r in answer["requests"] if r[0] != 200]
    if wrong:
        sys.exit(f"{len(wrong)} requests were not answered with 200 but {wrong[0][0]}")
    return answer


def rates(answer):
    """Tokens a second: steady, whole; and the times to the first text, sorted."""
    requests = answer["requests"]
    tokens, events = sum(r[1] for r in requests), sum(r[2] for r in requests)
    steady = answer["window_events"] / answer["window_s"] * tokens / events if answer["window_s"] > 0 else 0
    whole = tokens / (max(r[5] for r in requests) - min(r[3] for r in requests))
    return steady, whole, sorted(r[4] - r[3] for r in requests)


def bench(model, batch, tokens):
    """What `realm bench` gives with so many sessions."""
    out = subprocess.run([BUILD / "realm", "bench", "--model", model, "--batch", str(batch), "--pp", "0", "--tg",
                          str(tokens), "--repeat", "1", "--json"],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(out)[0]["tokens_per_second"]


def spread(values, digits=3):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def beside_bench(arguments, streams):
    body = {"model": "m", "prompt": [1], "max_tokens": arguments.tg, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}
    ours, steady, whole = [], [], []
    with serving(arguments.model, "--kv-memory", "1g") as (port, _):
        load(port, [body], streams, 0)  # a warm-up
        for _ in range(arguments.repeat):
            native = bench(arguments.model, streams, arguments.tg)
            # One round of requests each time, so that both sides have the same contexts all along.
            s, w, _ = rates(load(port, [body], streams, 0))
            ours.append(native)
            steady.append(s / native)
            whole.append(w / native)
    print(f"{streams:3} streams   bench {spread(ours, 0)} tokens/s   steady {spread(steady)}   whole {spread(whole)}   "
          f"bests {max(s * n for s, n in zip(steady, ours)) / max(ours):.3f}")


def prompts(count, seed):
    """Texts of about 330 tokens that begin differently, so that no cache of prefixes serves them."""
    words = ("the sea was calm and a small boat went out with three people who had never seen so much water before "
             "they talked about home about bread and about how long it would take until somebody came back").split()
    choose = random.Random(seed)
    return [f"Story {choose.random()}: " + " ".join(choose.choice(words) for _ in range(315)) for _ in range(count)]


def beside_other(arguments, streams):
    def bodies(seed, fields):
        return [{"model": "m", "prompt": text, "max_tokens": 64, "temperature": 0, "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True}, **fields} for text in prompts(512, seed)]

    speed, wait, theirs, mine = [], [], [], []
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(serving(arguments.model, "--kv-memory", "1g"))
        if arguments.other.isdecimal():
            other_port, fields = int(arguments.other), {"cache_prompt": False}  # llama.cpp's way to say it
        else:
            other_port, _ = stack.enter_context(serving(arguments.model, "--kv-memory", "1g", realm=arguments.other))
            fields = {}
        for repetition in range(arguments.repeat):
            other = rates(load(other_port, bodies(repetition, fields), streams, arguments.seconds))
            our = rates(load(port, bodies(repetition, {}), streams, arguments.seconds))
            theirs.append(other)
            mine.append(our)
            speed.append(our[1] / other[1])
            wait.append(statistics.median(our[2]) / statistics.median(other[2]))
    for name, side in (("other", theirs), ("Realm", mine)):
        waits = sorted(w for s in side for w in s[2])
        print(f"{streams:3} streams   {name}   {spread([s[1] for s in side], 0)} tokens/s   first text: median "
              f"{statistics.median(waits):.2f} s, 95th percentile {waits[int(len(waits) * 0.95)]:.2f} s, longest {waits[-1]:.2f} s")
    print(f"{streams:3} streams   ratio of tokens/s {spread(speed, 2)}, of the median wait {spread(wait, 3)}")


def first_byte(arguments):
    """Answers that need no model, beside streams that do."""
    body = {"model": "m", "prompt": [1], "max_tokens": 1000, "temperature": 0, "ignore_eos": True, "stream": True}
    with serving(arguments.model, "--kv-memory", "1g") as (port, _):
        for streams in (0, 8, 32):
            runner = None
            if streams:
                runner = threading.Thread(target=load, args=(port, [body], streams, 4))
                runner.start()
                time.sleep(1)
            for path in ("/health", "/v1/models"):
                out = subprocess.run([BUILD / "bench_server_load", "--port", str(port), "--path", path, "--probe",
                                      "--seconds", "2"], check=True, stdout=subprocess.PIPE).stdout
                times = sorted(json.loads(out)["seconds"])
                print(f"{streams:3} streams   {path:12} median {statistics.median(times) * 1e3:.2f} ms, 95th percentile "
                      f"{times[int(len(times) * 0.95)] * 1e3:.2f} ms, longest {times[-1] * 1e3:.2f} ms")
            if runner:
                runner.join()


def small(arguments):
    """wrk on one core, the server on the other."""
    with serving(arguments.model, "--kv-memory", "64m") as (port, pid):
        subprocess.run(["taskset", "-apc", "0", str(pid)], check=True, stdout=subprocess.DEVNULL)
        for path in ("/health", "/v1/models/none", "/nothing"):
            out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", "-c32", "-d5s", f"http://127.0.0.1:{port}{path}"],
                                 check=True, stdout=subprocess.PIPE, text=True).stdout
            rate = float(re.search(r"Requests/sec:\s*([\d.]+)", out)[1])
            print(f"{path:18} {rate:,.0f} answers a second")


class Sink(http.server.BaseHTTPRequestHandler):
    """A collector that takes everything and looks at nothing."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def spans(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return [sum(map(float, re.findall(rf"^realm_traces_{kind}_total\S* (\d+)", text, re.M))) for kind in ("exported", "dropped")]


def traces(arguments):
    """Without spans, with all requests sampled out, with all traced: one after the other in each repetition."""
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    on = ("--traces-endpoint", f"http://127.0.0.1:{sink.server_port}", "--kv-memory", "1g")
    with serving(arguments.model, "--kv-memory", "1g") as none, serving(arguments.model, *on, "--traces-sample", "0") as out, \
            serving(arguments.model, *on) as all_of:
        servers = {"off": none, "sampled out": out, "traced": all_of}
        body = {"model": "m", "prompt": [1], "max_tokens": arguments.tg, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}
        small, fast = {name: [] for name in servers}, {name: [] for name in servers}
        for _ in range(arguments.repeat):
            for name, (port, _) in servers.items():
                said = subprocess.run(["wrk", "-t1", "-c32", "-d2s", f"http://127.0.0.1:{port}/v1/models"], check=True,
                                      stdout=subprocess.PIPE, text=True).stdout
                small[name].append(float(re.search(r"Requests/sec:\s*([\d.]+)", said)[1]))
        taken, given_up = spans(all_of[0])
        for _ in range(arguments.repeat):
            for name, (port, _) in servers.items():
                fast[name].append(rates(load(port, [body], 8, 3))[1])
        for what, figures in (("small requests", small), ("tokens of 8 streams", fast)):
            for name, values in figures.items():
                ratios = [v / w for v, w in zip(values, figures["off"])]
                print(f"{what:20} {name:12} {spread(values, 0)} a second   of off {spread(ratios)}")
        print(f"of small requests' spans {taken / (taken + given_up):.0%} were exported; of streams' "
              f"{spans(all_of[0])[1] - given_up:.0f} were dropped")


# ---- gRPC ----


def generate_request(tokens):
    """A realm.v1.GenerateRequest by hand: model "m", prompt [1], temperature 0, past the model's own end."""
    size = bytes([tokens & 127 | 128, tokens >> 7]) if tokens > 127 else bytes([tokens])
    sampling = b"\x08" + size + b"\x11" + bytes(8) + b"\x68\x01"
    return b"\x0a\x01m" + b"\x1a\x03\x0a\x01\x01" + b"\x22" + bytes([len(sampling)]) + sampling


async def stream_calls(port, streams, tokens):
    """What bench_server_load prints of one round, and the processor's seconds that this process took."""
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        call = channel.unary_stream("/realm.v1.Inference/Generate", request_serializer=bytes, response_deserializer=bytes)

        async def one():
            start, times = time.monotonic(), []
            async for _ in call(generate_request(tokens)):
                times.append(time.monotonic())
            return start, times

        before = time.process_time()
        calls = await asyncio.gather(*(one() for _ in range(streams)))
        taken = time.process_time() - before
    begin, end = max(times[0] for _, times in calls), min(times[-1] for _, times in calls)
    return {"requests": [[200, tokens, len(times), start, times[0], times[-1]] for start, times in calls],
            "window_events": sum(begin <= t <= end for _, times in calls for t in times),
            "window_s": max(0, end - begin), "client_s": taken}


def net_seconds(pid):
    """What the server's net thread, its first, has taken of a processor."""
    return int(pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def beside_grpc(arguments, streams):
    body = {"model": "m", "prompt": [1], "max_tokens": arguments.tg, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}

    def over_http(port):
        return load(port, [body], streams, 0)

    def over_grpc(port):
        return json.loads(subprocess.run([sys.executable, __file__, arguments.model, "--grpc-client", str(port), "--streams",
                                          str(streams), "--tg", str(arguments.tg)], check=True, stdout=subprocess.PIPE).stdout)

    speed, net, client, ratios = {"HTTP": [], "gRPC": []}, {"HTTP": [], "gRPC": []}, [], []
    with serving(arguments.model, "--kv-memory", "1g") as (port, pid):
        over_http(port)
        over_grpc(port)
        for _ in range(arguments.repeat):
            for name, ask in (("HTTP", over_http), ("gRPC", over_grpc)):
                before = net_seconds(pid)
                answer = ask(port)
                tokens = sum(r[1] for r in answer["requests"])
                net[name].append((net_seconds(pid) - before) / tokens * 1e6)
                speed[name].append(rates(answer)[1])
                if name == "gRPC":
                    client.append(answer["client_s"] * speed[name][-1] / tokens)
            ratios.append(speed["gRPC"][-1] / speed["HTTP"][-1])
    for name in speed:
        print(f"{streams:3} streams   {name} {spread(speed[name], 0)} tokens/s   net thread {spread(net[name], 1)} us a token")
    print(f"{streams:3} streams   gRPC of HTTP {spread(ratios)}   its client took {spread(client, 2)} of a core")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tg", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=8, help="of load on each side, beside another server")
    parser.add_argument("--other", metavar="PORT|REALM")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--first-byte", action="store_true")
    parser.add_argument("--traces", action="store_true")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--grpc-client", metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grpc_client:
        print(json.dumps(asyncio.run(stream_calls(arguments.grpc_client, int(arguments.streams), arguments.tg))))
        return
    if arguments.small:
        small(arguments)
    elif arguments.first_byte:
        first_byte(arguments)
    elif arguments.traces:
        traces(arguments)
    else:
        for streams in map(int, arguments.streams.split(",")):
            (beside_grpc if arguments.grpc else beside_other if arguments.other else beside_bench)(arguments, streams)


if __name__ == "__main__":
    main()
