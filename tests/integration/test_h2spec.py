"""HTTP/2 as others see it: h2spec's cases in clear and over TLS, and curl. Each is skipped, with the reason, where the
program is not there (scripts/test.sh builds h2spec)."""
import os
import re
import shutil
import subprocess

import pytest

from serving import serving


def tool(variable, name):
    path = os.environ.get(variable) or shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not there: set {variable}, or let scripts/test.sh build it")
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module", params=["clear", "tls"])
def server(request, realm, smollm2, certificate, tmp_path_factory):
    secure = ["--tls-cert", certificate / "cert.pem", "--tls-key", certificate / "key.pem"] if request.param == "tls" else []
    with serving(realm, "--model", f"smol={smollm2}", "--kv-memory", "64m", "--data", tmp_path_factory.mktemp("h2") / "d",
                 *secure) as s:
        yield s
        assert s.process.poll() is None, s.read_log()


def test_every_case_of_h2spec_passes(server):
    secure = ["-t", "-k"] if server.scheme == "https" else []
    done = subprocess.run([tool("REALM_H2SPEC", "h2spec"), "-h", server.host, "-p", str(server.port), "-o", "5",
                           "-P", "/health", *secure], capture_output=True, text=True, timeout=300)
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
    assert counts, done.stdout[-2000:] + done.stderr
    failed = done.stdout[done.stdout.find("Failures:"):] if "Failures:" in done.stdout else done.stdout[-2000:]
    assert int(counts[4]) == 0 and int(counts[1]) >= 145, failed
    assert int(counts[3]) <= 1, failed


@pytest.mark.parametrize("flag", ["--http1.1", "--http2", "--http2-prior-knowledge"])
def test_curl_speaks_every_version(server, certificate, flag):
    curl = tool("CURL", "curl")
    body = '{"model":"smol","prompt":"The capital of France is","max_tokens":4,"temperature":0,"stream":true}'
    done = subprocess.run([curl, "-sS", "-N", flag, "--cacert", certificate / "cert.pem", "--max-time", "120", "-w",
                           "\n%{http_code} %{http_version}", "-d", body, "-H", "content-type: application/json",
                           server.url + "/v1/completions"], capture_output=True, text=True, timeout=150)
    text, _, end = done.stdout.rpartition("\n")
    # in clear, --http2 asks to upgrade from HTTP/1.1, which RFC 9113 has done away with: the request is answered as it is
    version = "1.1" if flag == "--http1.1" or (flag == "--http2" and server.scheme == "http") else "2"
    assert end == f"200 {version}", done.stdout + done.stderr
    assert " Paris" in text and text.rstrip().endswith("data: [DONE]")
