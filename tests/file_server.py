"""A server of the files in a folder, for tests; nothing leaves this machine."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class FileServer(ThreadingHTTPServer):
    """Serves the folder `root` at `url`."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.url = root, f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        self.ranges, self.busy = True, 0  # parts of files too; answers still to give as 503


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, path = self.server, self.server.root / unquote(self.path).lstrip("/")
        server.asked.append(self.path)
        if server.busy or not path.is_file():
            self.send_error(503 if server.busy else 404)
            server.busy = max(0, server.busy - 1)
            return
        data = path.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part and server.ranges:
            data = data[int(part[1]) : int(part[2]) + 1]
        self.send_response(206 if part and server.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    with FileServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
