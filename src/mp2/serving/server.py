"""Runs the application with uvicorn: drains on SIGTERM, drops connections that never finish their headers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mp2.errors import ConfigError
from mp2.serving.app import create_app
from mp2.serving.edge import LOG, log
from mp2.serving.jobs import hold
from mp2.serving.service import LOOPBACK, Service, Settings

HEADER_SECONDS = 15.0
TOGETHER = 1 << 16  # bytes that wait for the end of a turn of the loop at most


class Together:
    """A transport that sends what is written in one turn of the event loop, headers and body, in one packet.

    Args:
        transport: The transport, which does everything else.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._held = transport, bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send some bytes before the loop turns again."""
        if not self._held:
            asyncio.get_running_loop().call_soon(self._flush)
        self._held += data
        if len(self._held) > TOGETHER:
            self._flush()

    def close(self) -> None:
        """Send what waits, then close; a client that takes nothing of it for some seconds is cut off."""
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(HEADER_SECONDS, self._transport.abort)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, bytearray()
            self._transport.write(held)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits some seconds for a request's headers, and no longer."""

    patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(cast(asyncio.Transport, Together(transport)))
        self._wait(True)

    def data_received(self, data: bytes) -> None:
        """Wait on while there are no whole headers; stop waiting when there are."""
        super().data_received(data)
        self._wait(self.cycle is None or self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._wait(False)
        super().connection_lost(exc)

    def _wait(self, on: bool) -> None:
        if on and self.patience is None:
            self.patience = self.loop.call_later(HEADER_SECONDS, self.transport.close)
        elif not on and self.patience is not None:
            self.patience.cancel()
            self.patience = None


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the server listens once it does."""
        await super().startup(sockets)
        for server in self.servers:
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                log("ready", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new work at once, then let uvicorn finish what is under way."""
        log("closing", signal=signal.Signals(sig).name)
        self.service.drain()
        super().handle_exit(sig, frame)


def serve(
    settings: Settings, host: str = "127.0.0.1", port: int = 8000, *, open_to_all: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: How the server runs.
        host: Address to listen on.
        port: Port; 0 takes a free one, which the log names.
        open_to_all: Whether an address that others can reach may be served without API keys.

    Raises:
        ConfigError: Others could reach the server and nothing would keep them out; the port is taken; or
            another server tunes tasks in the folder.
    """
    if host not in LOOPBACK and settings.keys is None and not open_to_all:
        raise ConfigError(
            f"--host {host} lets other machines in: give a key file with --keys (see 'mp2 key'), or say"
            " --no-keys if everybody may ask, tune and delete"
        )
    _log_to_stderr()
    service = Service(settings)
    config: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "on", "ws": "none"}
    server = Server(
        uvicorn.Config(
            create_app(service),
            host,
            port,
            http=PatientProtocol,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(HEADER_SECONDS),
            timeout_graceful_shutdown=int(settings.drain) + 5,
            **config,
        ),
        service,
    )
    gc.collect()
    gc.freeze()  # a pass over all the libraries' objects would hold every request up for a tenth of a second
    try:
        with hold(service.store.folder) if settings.tune else contextlib.nullcontext():
            server.run()
    except SystemExit as error:  # uvicorn's way of saying that it could not listen
        raise ConfigError(f"cannot listen on {host}:{port}; is it taken?") from error


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO)
