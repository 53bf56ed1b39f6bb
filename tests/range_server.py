"""A web server over a folder that gives parts of files, and fails when told to."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote


class RangeServer:
    """Serves `folder` at `address` while in its context."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.requests: list[str] = []  # paths asked for
        self.connections = 0
        self.busy = 0  # requests still to answer with 503
        self.cuts = 0  # answers still to cut short
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        about = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                about.connections += 1

            def do_GET(self) -> None:
                about.requests.append(self.path)
                path = about.folder / unquote(self.path).lstrip("/")
                if about.busy:
                    about.busy -= 1
                    return self.answer(503, b"")
                if not path.is_file():
                    return self.answer(404, b"")
                data = path.read_bytes()
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if part and about.ranges:
                    start, stop = int(part[1]), min(int(part[2]) + 1, len(data))
                    extent = f"bytes {start}-{stop - 1}/{len(data)}"
                    return self.answer(206, data[start:stop], extent)
                return self.answer(200, data)

            def answer(self, status: int, data: bytes, extent: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if extent:
                    self.send_header("Content-Range", extent)
                self.end_headers()
                if about.cuts and data:
                    about.cuts -= 1
                    data, self.close_connection = data[: len(data) // 2], True
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
