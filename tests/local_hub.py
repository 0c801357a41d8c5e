"""The few calls of the hub's HTTP interface that an upload and a download make, over a folder.

Models lie in ``owner/name``, data sets in ``datasets/owner/name``; every revision is the same commit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Container, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _handler(
    folder: Path, cut: Container[str], damaged: Container[str], gated: bool
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            url = f"http://{self.headers['host']}"
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
                (folder / name).mkdir(parents=True)
                (folder / name / "visibility").write_text(asked.get("visibility", "public"))
                self._json({"url": f"{url}/{name}", "name": name, "id": name})
            elif self.path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                kept = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self._json({"files": kept})
            elif "/commit/" in self.path:
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                for line in body.splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        file = folder / name / item["value"]["path"]
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(base64.b64decode(item["value"]["content"]))
                self._json({"commitUrl": f"{url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.send_error(404)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/datasets/"):
                self._data_set("/".join(path.split("/")[3:5]))
            elif path.startswith("/api/models/"):
                name = "/".join(path.split("/")[3:5])
                if not (folder / name).is_dir():
                    self.send_error(404)
                    return
                found = sorted(f for f in (folder / name).rglob("*") if f.is_file())
                names = [str(f.relative_to(folder / name)) for f in found]
                if "/tree/" in path:
                    self._json([{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names])
                    return
                siblings = [{"rfilename": n} for n in names]
                self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
            else:
                name, _, rest = path[1:].partition("/resolve/")
                if gated:
                    self._refuse(403, "GatedRepo")
                    return
                file = folder / name / rest.partition("/")[2]
                if not file.is_file():
                    self._refuse(404, "EntryNotFound")
                    return
                data = file.read_bytes()
                self._bytes(data[::-1] if rest in damaged else data, broken=rest in cut)

        do_HEAD = do_GET

        def _data_set(self, name: str) -> None:
            home = folder / "datasets" / name
            if not home.is_dir():
                self._refuse(401, "RepoNotFound")  # as the hub answers, so that nobody learns what is private
                return
            siblings = []
            for file in sorted(f for f in home.rglob("*") if f.is_file()):
                data = file.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                facts = {"rfilename": str(file.relative_to(home)), "size": len(data), "blobId": blob}
                if file.suffix == ".parquet":  # large files lie apart; in Git itself is a pointer to them
                    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                    facts |= {"blobId": COMMIT, "lfs": lfs}
                siblings.append(facts)
            self._json({"id": name, "sha": COMMIT, "siblings": siblings})

        def _refuse(self, status: int, reason: str) -> None:
            self.send_response(status)
            self.send_header("x-error-code", reason)
            self.send_header("content-length", "0")
            self.end_headers()

        def _json(self, value: Any) -> None:
            self._bytes(json.dumps(value).encode())

        def _bytes(self, data: bytes, broken: bool = False) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.send_header("etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("x-repo-commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if broken else data)
                self.close_connection = broken

    return Handler


@contextlib.contextmanager
def local_hub(
    folder: Path, cut: Container[str] = (), damaged: Container[str] = (), gated: bool = False
) -> Iterator[str]:
    """Serve a folder as a hub; gives its address. Works where HF_HUB_OFFLINE keeps the real hub away.

    Files named in ``cut``, as ``commit/name``, break off in the middle; those in ``damaged`` come whole but
    wrong. Of a ``gated`` hub everybody may list the files, and nobody may have them.
    """
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder, cut, damaged, gated))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        constants.HF_HUB_OFFLINE = offline
        server.shutdown()
        thread.join()
        server.server_close()
