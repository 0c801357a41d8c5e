"""A real server on a real socket, in a thread or in a process of its own, and a small client."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from mp2.model.checkpoint import Base
from mp2.serving.app import create_app
from mp2.serving.server import PatientProtocol, Server
from mp2.serving.service import Service, Settings


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Speaks to a server; every call is a connection of its own."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> Reply:
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        sent |= self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        ) as connection:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events until the stream ends."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        ) as connection:
            connection.request("GET", path, headers=self.headers)
            kind = ""
            for line in connection.getresponse():
                if line.startswith(b"event: "):
                    kind = line[7:].strip().decode()
                elif line.startswith(b"data: "):
                    yield kind, json.loads(line[6:])

    def job(self, id_: str, seconds: float = 300) -> Any:
        """A job once it has ended."""
        end = time.monotonic() + seconds
        while (state := self("GET", f"/v1/jobs/{id_}").json)["status"] in ("queued", "running"):
            assert time.monotonic() < end, state
            time.sleep(0.1)
        return state


@contextlib.contextmanager
def in_thread(settings: Settings, base: Base) -> Iterator[tuple[Client, Service]]:
    """A server in a thread, which shares the loaded base."""
    service = Service(settings, base)
    config = uvicorn.Config(
        create_app(service), port=0, http=PatientProtocol, log_config=None, lifespan="on", ws="none"
    )
    server = Server(config, service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(server.servers[0].sockets[0].getsockname()[1]), service
    finally:
        server.should_exit = True
        service.drain()
        thread.join(30)


@contextlib.contextmanager
def in_process(folder: Path, *options: str) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """``mp2 serve`` as a user starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mp2.cli.main", "serve", str(folder), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    log = process.stderr
    assert log is not None
    reader = threading.Thread(target=lambda: [None for _ in log])  # unread, it would make the server wait
    try:
        lines = (json.loads(line) for line in log if line.startswith("{"))
        ready = next((line for line in lines if line["event"] == "ready"), None)
        assert ready is not None, f"no server: exit code {process.wait()}"
        reader.start()
        yield Client(int(ready["url"].rpartition(":")[2])), process
    finally:
        process.kill()
        process.wait()
        if reader.is_alive():
            reader.join()
        log.close()
