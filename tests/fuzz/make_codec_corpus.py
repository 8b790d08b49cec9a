"""Writes the corpora of fuzz_codec.c: what good clients send, for mutations to begin with.

    python3 tests/fuzz/make_codec_corpus.py          (needs h2)"""
import json
import pathlib
import zlib

import h2.config
import h2.connection

HERE = pathlib.Path(__file__).resolve().parent / "corpus"


def keep(kind, name, data):
    folder = HERE / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def http1():
    keep("http1", "get.txt", b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-One:  two \r\nEmpty:\r\n\r\n")
    keep("http1", "length.txt", b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: x\r\n\r\n")
    keep("http1", "chunks.txt", b"POST /q HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                                b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n")
    keep("http1", "expect.txt", b"PUT http://y/q HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx")
    keep("http1", "old.txt", b"\r\nHEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    keep("http1", "upgrade.txt", b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")


def http2():
    def client():
        c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_outbound_headers=False))
        c.initiate_connection()
        return c

    def head(method, path, **more):
        return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), *more.items()]

    c = client()
    c.send_headers(1, head("GET", "/a?b"), end_stream=True)
    c.send_headers(3, head("POST", "/p", accept="*/*"))
    c.send_data(3, b"hello", end_stream=True)
    c.ping(b"01234567")
    keep("http2", "requests.bin", c.data_to_send())
    c = client()
    for id in range(1, 21, 2):
        c.send_headers(id, head("GET", "/"))
        c.reset_stream(id)
    keep("http2", "resets.bin", c.data_to_send())
    c = client()
    c.send_headers(1, head("POST", "/", **{f"x-{i}": "y" * 900 for i in range(40)}), end_stream=True)
    c.update_settings({4: 1})
    c.increment_flow_control_window(1000)
    keep("http2", "continuation.bin", c.data_to_send())
    c = client()
    c.send_headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), *head("", "/v1/ws")[1:]])
    c.send_data(1, b"\x81\x80\0\0\0\0")
    keep("http2", "connect.bin", c.data_to_send())


def websocket():
    def frame(payload, first=0x81):
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2, "big")
        return bytes([first]) + length + bytes(4) + payload

    def say(**message):
        return json.dumps(message).encode()

    chat = say(type="chat", id="a", body={"model": "m", "messages": [{"role": "user", "content": "é"}]})
    pack = zlib.compressobj(wbits=-11)
    packed = pack.compress(chat) + pack.flush(zlib.Z_SYNC_FLUSH)
    keep("websocket", "chat.bin", b"\1" + frame(chat) + frame(say(type="cancel", id="a")) + frame(b"\x03\xe8", 0x88))
    keep("websocket", "types.bin", b"\1" + frame(say(type="program", id="b", name="x/y", body=[1, {"z": "}]"}])) +
         frame(say(body=1.5, id="c", type="embeddings")) + frame(say(type="completion", id="d", body=None)))
    keep("websocket", "auth.bin", b"\0" + frame(say(type="auth", key="k")) + frame(chat))
    keep("websocket", "fragments.bin", b"\1" + frame(chat[:9], 1) + frame(b"ping", 0x89) + frame(b"", 0) + frame(chat[9:], 0x80))
    keep("websocket", "packed.bin", b"\3" + frame(packed[:-4], 0xC1) + frame(packed[:20], 0x41) + frame(packed[20:-4], 0x80))
    keep("websocket", "long.bin", b"\1" + frame(say(type="chat", id="l", body="x" * 300)) + frame(b"", 0x8A))


if __name__ == "__main__":
    http1()
    http2()
    websocket()
