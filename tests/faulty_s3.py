"""An S3 with faults: a server in a process of its own, and a proxy before it that disturbs.

The proxy runs in threads of the test, so rules can be set and counts read directly; workers in
other processes reach it over its port all the same.
"""

import base64
import hashlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",  # pragma: allowlist secret
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a process needs besides the address."""

_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
_XML = [("Content-Type", "application/xml")]
_PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Fault:
    """What is done to a request.

    Attributes:
        name: Under which it is counted.
        delay: Seconds before the first byte of the answer.
        status: Answered instead of asking the store, with `code`.
        reset: The connection is reset before the store is asked.
        lose: The store does what it is asked, and the connection is closed without an answer.
        cut_request: Bytes of the request's body that are read before the connection is closed.
        damage: The last byte of the request's body is changed before it reaches the store.
        cut_answer: Bytes of the answer's body that are sent before the connection is closed.
        shorten: Bytes of the answer's body that are sent, as if there were no more.
        drip: Bytes that are sent at a time, with `delay` before each.
        body: Sent with status 200 instead of what the store says.
    """

    name: str
    delay: float = 0.0
    status: int = 0
    code: str = ""
    reset: bool = False
    lose: bool = False
    cut_request: int | None = None
    damage: bool = False
    cut_answer: int | None = None
    shorten: int | None = None
    drip: int = 0
    body: bytes = b""


def slow(seconds: float) -> Fault:
    """Answer late."""
    return Fault("slow", delay=seconds)


def dripping(num_bytes: int, seconds: float) -> Fault:
    """Send a few bytes at a time."""
    return Fault("drip", delay=seconds, drip=num_bytes)


def answered(status: int, code: str | None = None) -> Fault:
    """Answer with an error."""
    return Fault(str(status), status=status, code=code or _CODES[status])


def cut_answer(after: int) -> Fault:
    """Close the connection within the body of an answer that promised more."""
    return Fault("cut_answer", cut_answer=after)


def cut_request(after: int) -> Fault:
    """Close the connection within the body of a request."""
    return Fault("cut_request", cut_request=after)


def shortened(to: int) -> Fault:
    """Answer with fewer bytes than were asked for, and say so."""
    return Fault("shortened", shorten=to)


RESET = Fault("reset", reset=True)
LOST = Fault("lost", lose=True)
DAMAGED = Fault("damaged", damage=True)
HANG = Fault("hang", delay=600.0)


@dataclass
class Rule:
    """Which requests a fault befalls.

    Attributes:
        fault: What happens to them.
        method: Of these requests, as a regular expression.
        target: Found in their path with query, as a regular expression.
        times: How often for each path; None for ever.
        skip: How many requests of each path pass before.
    """

    fault: Fault
    method: str = ".*"
    target: str = ""
    times: int | None = None
    skip: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def strikes(self, method: str, target: str) -> bool:
        """Return whether this request is struck, and count it."""
        if not (re.fullmatch(self.method, method) and re.search(self.target, target)):
            return False
        self.seen[target] += 1
        number = self.seen[target] - self.skip
        return number > 0 and (self.times is None or number <= self.times)


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a pretended S3 in a process of its own; give out its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, "the pretended S3 did not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def deaf_address() -> Iterator[str]:
    """Give out an address where connections are neither accepted nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, ExitStack() as waiting:
        for _ in range(4):  # what fits into the queue
            knock = waiting.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(deaf.getsockname())
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


class FaultyProxy:
    """An HTTP proxy on the loopback interface before one server.

    Attributes:
        url: Its address.
        requests: (method, path with query, name of the fault or "") of all requests so far.
    """

    def __init__(self, upstream: str) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self._upstream = urlsplit(upstream).netloc
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, fault: Fault, method: str = ".*", target: str = "", **counts: int) -> Rule:
        """Add a rule; of several that fit a request, the first that is not used up holds."""
        rule = Rule(fault, method, target, **counts)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def count(self, fault: str | None = None, method: str = ".*", target: str = "") -> int:
        """Return how many requests there were, or how many met a fault."""
        with self._lock:
            return sum(
                bool(re.fullmatch(method, m) and re.search(target, t)) and fault in (None, f)
                for m, t, f in self.requests
            )

    def close(self) -> None:
        """Stop answering."""
        self._is_closing.set()
        self._server.shutdown()
        self._server.server_close()

    def befalls(self, method: str, target: str) -> Fault:
        """Return the fault of a request, and note it."""
        with self._lock:
            struck = (rule.fault for rule in self._rules if rule.strikes(method, target))
            fault = next(struck, Fault(""))
            self.requests.append((method, target, fault.name))
        return fault

    def wait(self, seconds: float) -> None:
        """Wait, unless the proxy is closed."""
        self._is_closing.wait(seconds)

    def ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> "_Answer":
        """Return what the server says."""
        connection = HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(method, target, body or None, headers)
            answer = connection.getresponse()
            return _Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def length(self) -> int:
        """What the answer says of its body, which that to a HEAD does not have."""
        named = {name.lower(): value for name, value in self.headers}
        return len(self.body) or int(named.get("content-length", 0))


def _error(status: int, code: str) -> _Answer:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
    return _Answer(status, _XML, text.encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Read one request, and answer it or do not."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        fault = self.proxy.befalls(self.command, unquote(self.path))
        if fault.reset:
            self._drop(reset=True)
            return
        body = self._body(fault.cut_request)
        if fault.cut_request is not None:
            self._drop()
            return
        answer = self._answer(fault, body)
        if fault.lose:
            self._drop()
            return
        self._send(fault, answer)

    def handle_expect_100(self) -> bool:
        """Ask for the body, at once."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _body(self, most: int | None) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(self._chunks())
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length if most is None else min(length, most))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, fault: Fault, body: bytes) -> _Answer:
        if fault.status:
            return _error(fault.status, fault.code)
        if fault.body:
            return _Answer(200, _XML, fault.body)
        if fault.damage:
            body = body[:-1] + bytes([body[-1] ^ 1])
        found = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if self.headers.get("Content-MD5", found) != found:
            return _error(400, "BadDigest")  # as S3 does, and moto does not
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _PER_CONNECTION}
        return self.proxy.ask(self.command, self.path, headers, body)

    def _send(self, fault: Fault, answer: _Answer) -> None:
        if not fault.drip:
            self.proxy.wait(fault.delay)
        body = answer.body[: fault.shorten]
        length = answer.length if fault.shorten is None else len(body)
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _PER_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(fault, body[: fault.cut_answer])
        self.wfile.flush()
        if fault.cut_answer is not None:
            self._drop()

    def _send_body(self, fault: Fault, body: bytes) -> None:
        step = fault.drip or max(1, len(body))
        for start in range(0, len(body), step):
            if fault.drip:
                self.wfile.flush()
                self.proxy.wait(fault.delay)
            self.wfile.write(body[start : start + step])

    def _drop(self, reset: bool = False) -> None:
        """End the connection, by a reset or in order."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
