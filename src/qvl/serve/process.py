"""The server as a process: its socket, its protocol's time limits, and how it ends.

SIGTERM and SIGINT drain: what is asked from then on is refused, what was taken is answered within the
grace, then the process ends. A second signal ends it at once, whatever is being computed. SIGHUP and SIGUSR1 do nothing, lest a
closed terminal or a log rotation end it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from qvl.errors import InputError
from qvl.serve.admission import draining
from qvl.serve.serving import Serving

log = logging.getLogger(__name__)
LAST_WORDS_S = 1.0  # in which answers that are given up say so
TICK_S = 0.02


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on which nobody listens yet. Raises InputError where there can be none."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as err:
        raise InputError(
            f"{host} port {port} cannot be served: {(err.strerror or str(err)).lower()}",
            hint="stop what runs there, or choose another with --port",
        ) from err
    return sock


class Protocol(H11Protocol):
    """uvicorn's, which also closes a connection whose request takes too long to begin."""

    header_s: float
    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._too_slow is None:
            self._too_slow = self.loop.call_later(self.header_s, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None


class Server(uvicorn.Server):
    """Serves an application of `create_app`; `stop` from any thread, or a signal, drains it."""

    def __init__(self, app: FastAPI) -> None:
        self._serving: Serving = app.state.serving
        limits = self._serving.limits
        protocol = type("Protocol", (Protocol,), {"header_s": limits.header_s})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,  # Front writes a line without the query
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=limits.header_bytes,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=5,
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            log.warning("serving %s on http://%s:%d/v1", self._serving.names[0], where, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second, self._signal = self._signal is not None, sig
        if is_second or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self.stop()

    def leave(self) -> None:
        """End the process here if threads still compute that nobody will wait for."""
        if self._signal is not None and (self.force_exit or self._serving.watchdog.is_stalled):
            os._exit(128 + self._signal)

    def stop(self) -> None:
        """Drain, then end; returns at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        self._serving.admission.closed = draining
        if not await self._answered(self._serving.limits.drain_s):
            log.warning("the grace is over: %d requests are given up", len(self.server_state.tasks))
            self._serving.answers.give_up(draining)
            await self._answered(LAST_WORDS_S)
        self.should_exit = True

    async def _answered(self, within_s: float) -> bool:
        """Whether all requests have their answers by then."""
        until_s = asyncio.get_running_loop().time() + within_s
        while self.server_state.tasks:
            if asyncio.get_running_loop().time() >= until_s:
                return False
            await asyncio.sleep(TICK_S)
        return True


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve on the socket until a signal."""
    ignored: dict[Any, Any] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGUSR1)
    }
    server = Server(app)
    try:
        server.run([sock])
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)
    server.leave()
