"""A server on this machine that has files as public servers and the Hugging Face Hub have them, and their faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Files by path, what goes wrong with which, and what was asked for.

    Attributes:
        address: of the server.
        files: contents by path.
        faults: by a part of the path: a status such as 404, `cut` (the connection breaks off), `altered` (another
            content), `mute` (no answer).
        token: what private repositories ask for.
        requests: the paths that were asked for.
        answers: what to say to posts, by path.
        posts: what was posted, by path.
    """

    def __init__(self, address: str):
        self.address = address
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.token = ""
        self.requests: list[str] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.posts: dict[str, bytes] = {}
        self.over = threading.Event()

    def add_repository(self, name: str, config: dict[str, Any] | bytes, weights: bytes) -> None:
        """A repository at its only commit: a configuration, and weights that lie elsewhere as large files do."""
        content = config if isinstance(config, bytes) else json.dumps(config).encode()
        for revision in ("main", COMMIT):
            self.files[f"/{name}/resolve/{revision}/config.json"] = content
            self.files[f"/{name}/resolve/{revision}/model.safetensors"] = weights
        listed = [{"rfilename": file} for file in ("config.json", "model.safetensors", "other.bin")]
        described = {"id": name, "sha": COMMIT, "siblings": listed}
        self.files[f"/api/models/{name}/revision/main"] = json.dumps(described).encode()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            server.requests.append(path)
            fault = next((fault for part, fault in server.faults.items() if part in path), None)
            if server.token and self.headers.get("Authorization") != f"Bearer {server.token}" and "/cdn/" not in path:
                fault = 401
            if fault == "mute":
                server.over.wait()
                return
            if isinstance(fault, int) or path.removeprefix("/cdn") not in server.files:
                self.send_error(fault if isinstance(fault, int) else 404)
                return
            content = server.files[path.removeprefix("/cdn")]
            if path.endswith("model.safetensors") and not path.startswith("/cdn/"):
                self.send_response(302)
                self.send_header("Location", f"{server.address}/cdn{path}")
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.answer(path, b"")
                return
            self.send_response(200)
            self.answer(path, content[:-1] + b"\0" if fault == "altered" else content, cut=fault == "cut")

        def do_POST(self):
            path = self.path.partition("?")[0]
            server.posts[path] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path not in server.answers or self.headers.get("Authorization") != f"Bearer {server.token}":
                self.send_error(404 if path not in server.answers else 401)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.answer(path, json.dumps(server.answers[path]).encode(), always=True)

        def answer(self, path: str, content: bytes, cut: bool = False, always: bool = False):
            if "/resolve/" in path:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET" or always:
                self.wfile.write(content[: len(content) // 2] if cut else content)

        def log_message(self, format: str, *args: object):
            """Keeps the test's output clean."""

    return Handler


@contextmanager
def loopback() -> Iterator[Server]:
    """The server, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}")
        http.RequestHandlerClass = _handler(server)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
            thread.join()
