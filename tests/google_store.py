"""A server that speaks as much of Google's storage API as reading and uploads need: a folder is the bucket `data`.

A file named `refuse` in it makes the server refuse everything.
"""

import hashlib
import json
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


class Store(BaseHTTPRequestHandler):
    """As much of Google's storage API as is needed."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    uploads: ClassVar[dict[str, bytes]] = {}
    """What has come of the files that are on their way, by name."""

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query)
        name = urllib.parse.unquote(parts.path.partition("/o/")[2] or parts.path.partition("/data/")[2])
        if (self.folder / "refuse").exists():
            self._send(403, b'{"error": {"code": 403, "message": "denied"}}')
        elif parts.path.rstrip("/").endswith("/o"):
            prefix = query.get("prefix", [""])[0]
            items = [self._described(each) for each in self._names() if each.startswith(prefix)]
            self._send(200, json.dumps({"kind": "storage#objects", "items": items}).encode())
        elif name not in self._names():
            self._send(404, b'{"error": {"code": 404, "message": "not found"}}')
        elif query.get("alt") == ["media"] or "/o/" not in parts.path:
            self._media((self.folder / name).read_bytes())
        else:
            self._send(200, json.dumps(self._described(name)).encode())

    def do_POST(self) -> None:
        """An upload begins: it goes on at the address that is answered."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        said = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if (self.folder / "refuse").exists():
            self._send(403, b'{"error": {"code": 403, "message": "denied"}}')
            return
        name = query.get("name", [said.get("name", "")])[0]
        self.uploads[name] = b""
        where = f"http://{self.headers['Host']}/upload/session?upload_id={urllib.parse.quote(name, safe='')}"
        self._send(200, b"{}", location=where)

    def do_PUT(self) -> None:
        """A part of an upload, or its last one, which `bytes 0-9/10` tells."""
        name = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["upload_id"][0]
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.uploads[name] += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.uploads[name] += self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = self.uploads[name]
        if self.headers.get("Content-Range", "").endswith("/*"):
            self._send(308, b"", received=f"bytes=0-{len(content) - 1}")
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.uploads.pop(name))
        self._send(200, json.dumps(self._described(name)).encode())

    def do_DELETE(self) -> None:
        """Remove a file."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.partition("/o/")[2])
        (self.folder / name).unlink(missing_ok=True)
        self._send(204, b"")

    def _names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def _described(self, name: str) -> dict[str, str]:
        content = (self.folder / name).read_bytes()
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "data",
            "size": str(len(content)),
            "etag": etag,
            "generation": "1",
            "metageneration": "1",
            "updated": "2024-01-01T00:00:00Z",
            "timeCreated": "2024-01-01T00:00:00Z",
        }

    def _media(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        if not asked:
            self._send(200, content, "application/octet-stream")
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content) - 1) + 1]
        extent = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, "application/octet-stream", extent)

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        extent: str = "",
        *,
        location: str = "",
        received: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in (("Location", location), ("Range", received)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if extent:
            self.send_header("Content-Range", extent)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


if __name__ == "__main__":
    Store.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
