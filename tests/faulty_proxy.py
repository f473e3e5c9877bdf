"""A proxy before an object store, which breaks the requests that a test tells it to."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROPPED, CUT, HALF, HUNG = "dropped", "cut", "half", "hung"
STATUS = {403: "AccessDenied", 409: "ConditionalRequestConflict", 412: "PreconditionFailed", 503: "SlowDown"}
CONDITIONS = ("if-match", "if-none-match")
Fault = str | int | None


class Handler(BaseHTTPRequestHandler):
    """Passes one request on as the server's proxy wants it."""

    protocol_version, wbufsize = "HTTP/1.1", 1 << 16
    server: Server

    def answer(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.requests.append((self.command, self.path))
        fault = proxy.fault(self.command, self.path)
        if fault == HUNG:
            proxy.over.wait()
        if fault in (DROPPED, HUNG):
            self.hang_up()
        elif isinstance(fault, int):
            code = f"<Error><Code>{STATUS.get(fault, 'Other')}</Code></Error>".encode()
            self.send(fault, {"Content-Type": "application/xml"}, code, len(code))
        else:
            self.pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def pass_on(self, body: bytes, fault: Fault) -> None:
        proxy = self.server.proxy
        told = {key: value for key, value in self.headers.items() if proxy.conditions or key.lower() not in CONDITIONS}
        store = http.client.HTTPConnection("127.0.0.1", proxy.upstream)
        store.request(self.command, self.path, body, told)
        answer = store.getresponse()
        data, headers = answer.read(), dict(answer.getheaders())
        store.close()
        if fault != CUT:
            length = int(headers.get("Content-Length", len(data)))
            self.send(answer.status, headers, data[: len(data) // 2] if fault == HALF else data, length)
        if fault in (CUT, HALF):
            self.hang_up()

    def send(self, status: int, headers: dict[str, str], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.proxy = proxy

    def handle_error(self, *_: Any) -> None: ...  # who asked has gone away


class Proxy:
    """Passes requests on to `upstream`, a port of this machine, and notes each as (method, path).

    `fault` is called with a request's method and path, and says what becomes of it: DROPPED before the store has seen
    it, CUT when the store has answered, HALF of the answer's body, HUNG until the proxy ends, or a status that is
    answered in the store's place; None lets it pass.
    """

    def __init__(self, upstream: int, fault: Callable[[str, str], Fault] = lambda method, path: None) -> None:
        self.upstream, self.fault, self.requests = upstream, fault, list[tuple[str, str]]()
        self.over = threading.Event()
        self.conditions = True  # whether the store is told what a put depends on
        self._server = Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
