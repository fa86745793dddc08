"""An HTTP proxy that loses, cuts and spoils some of what passes, as networks do."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def bad_road(
    port: int,
    *,
    seed: int = 0,
    fail: float = 0.05,
    cut: float = 0.02,
    flip: float = 0.01,
    asked: list[tuple[str, str]] | None = None,
) -> Iterator[int]:
    """The port of a proxy to `port` of localhost; `asked` gets the method and the path of each request.

    A part `fail` of the requests is answered by 503, a part `cut` of the answers ends early, and in a part `flip` of
    the bodies that are fetched one byte is another.
    """
    dice, lock = random.Random(seed), threading.Lock()

    def roll() -> float:
        with lock:
            return dice.random()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            if asked is not None:
                asked.append((self.command, self.path))
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if roll() < fail:
                self._answer(503, [], b"")
                return
            there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            there.request(self.command, self.path, sent or None, dict(self.headers.items()))
            answer = there.getresponse()
            body = bytearray(answer.read())
            there.close()
            if self.command == "GET" and body and roll() < flip:
                body[len(body) // 2] ^= 1
            self._answer(answer.status, answer.getheaders(), bytes(body))

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if body and roll() < cut:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed."""

    server = Server(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
