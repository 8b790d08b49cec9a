"""A collector of traces for tests: OTLP over HTTP, decoded with OpenTelemetry's own protobuf package."""
import gzip
import http.server
import threading
import time

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

KINDS = {1: "internal", 2: "server"}


def value_of(v):
    kind = v.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in v.array_value.values]
    return getattr(v, kind)


def attributes_of(message):
    names = [a.key for a in message.attributes]
    assert len(names) == len(set(names)), f"an attribute comes twice: {names}"
    return {a.key: value_of(a.value) for a in message.attributes}


class Span:
    def __init__(self, span, resource, scope):
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        assert len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8)
        self.name, self.kind = span.name, KINDS[span.kind]
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.state, self.flags = span.trace_state, span.flags
        self.failed = span.status.code == 2
        self.attributes, self.resource, self.scope = attributes_of(span), resource, scope

    def __getitem__(self, name):
        return self.attributes[name]

    def get(self, name):
        return self.attributes.get(name)

    def __repr__(self):
        return f"{self.name} {self.trace[:4]}/{self.id[:4]}<{self.parent[:4]} {(self.end - self.start) / 1e6:.3f} ms {self.attributes}"


class Collector:
    """Listens on a port of its own. script: what the next posts are answered, as (status, headers, body) or a
    function of the handler; after that 200."""

    def __init__(self, port=0):
        self.posts, self.spans, self.script = [], [], []
        self.changed = threading.Condition()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with collector.changed:
                    step = collector.script.pop(0) if collector.script else (200, {}, b"")
                    collector.posts.append((time.monotonic(), self.path, dict(self.headers), body,
                                            step[0] if isinstance(step, tuple) else None))
                    if isinstance(step, tuple) and step[0] == 200:
                        collector.take(self.headers, body)
                    collector.changed.notify_all()
                if not isinstance(step, tuple):
                    step(self)
                    return
                status, headers, answer = step
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, headers, body):
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            for scoped in group.scope_spans:
                self.spans += [Span(s, attributes_of(group.resource), scoped.scope) for s in scoped.spans]

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def wait(self, wanted, seconds=60):
        """What wanted(self) gives, when that is something."""
        with self.changed:
            assert self.changed.wait_for(lambda: wanted(self), seconds), f"it did not come; there are: {self.spans}"
            return wanted(self)

    def trace(self, id, count=1):
        """The spans of a trace, by start, once its count of server spans has come."""
        def whole(c):
            found = [s for s in c.spans if s.trace == id]
            return sum(s.kind == "server" for s in found) >= count and sorted(found, key=lambda s: (s.start, -s.end))

        return self.wait(whole)


def under(spans, parent, name=None):
    return [s for s in spans if s.parent == parent.id and name in (None, s.name)]
