"""A web server for tests that is not Fireside."""

import contextlib
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer(ThreadingHTTPServer):
    """Answers each GET with one page, and records path and headers. `headers` are further ones of the answers, by path."""

    daemon_threads = True

    def __init__(self, page: bytes, headers: dict[str, dict[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page, self.headers = page, headers
        self.requests: list[tuple[str, Message]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers))
        self.send_response(200)
        sent = {"Content-Type": "text/html", "Content-Length": str(len(self.server.page))}
        for name, value in (sent | self.server.headers.get(self.path, {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web_server(page: bytes = b"", **headers: dict[str, str]) -> Iterator[WebServer]:
    with WebServer(page, {f"/{name}": fields for name, fields in headers.items()}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
