"""What no error, answer or line of the log may hold, and the places where the tests look for it.

`leaks` names what a text tells too much. A served model (`served.running`) and the command (the
fixture `qvl`) are looked at in every test that uses them, and so is every error that is made.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qvl
from qvl.errors import QvlError

# addresses of objects (a damaged picture may be 0x2357545036 px), tracebacks, keys, base64
TELLING = re.compile(
    r" at 0x[0-9a-f]+|(?<!\d)0x[0-9a-f]{9,}+(?! p)|File \"/|Traceback|Bearer \S{8,}|[A-Za-z0-9+/]{200}"
)
# folders of the program and of its Python, which no caller has named
OWN_FOLDERS = tuple({str(Path(qvl.__file__).parent), sys.prefix, sys.base_prefix, "/site-packages"})
# for a client far away every folder is the server's
SERVERS_FOLDERS = ("/home/", "/tmp/", "/root/", "/usr/", "/etc/", "/var/", str(Path.cwd()))
# characters from which on a text, or an address, of a client's is looked for in what is told
SHORTEST = {"text": 8, "content": 8, "input": 8, "prompt": 8, "url": 40, "image_url": 40}
KEY_LENGTH = 8


def leaks(text: str, folders: Iterable[str] = (), secrets: Iterable[str] = ()) -> list[str]:
    """What the text holds of that, of folders of the program's own and of those given, of secrets."""
    found = [match[0] for match in TELLING.finditer(text)]
    # a long name of a caller's is no picture: it has few different letters
    found = [part[:80] for part in found if len(part) < 200 or len(set(part)) > 16]
    return found + [part[:80] for part in (*OWN_FOLDERS, *folders, *secrets) if part in text]


def refuse(found: Iterable[object], what: str) -> None:
    """Raises if something was found; no `assert`, which a module of helpers may lose under -O."""
    if listed := [str(one) for one in found]:
        raise AssertionError(f"{what}: {listed[:5]}")


class Notes(logging.Handler):
    """Lines of the log at the level where a server logs, as they would be written.

    A command that runs in the same process speaks to whoever named the files: those lines are apart.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("qvl.cli."):
            self.lines.append(logging.Formatter().format(record))


@contextmanager
def noted_log() -> Iterator[list[str]]:
    """Every line from INFO on that qvl logs meanwhile."""
    logger, notes = logging.getLogger("qvl"), Notes()
    before, others = logger.level, {handler: handler.level for handler in logger.handlers}
    for handler in others:  # that of a command that ran in this process shows what it did before
        handler.setLevel(max(handler.level, logger.getEffectiveLevel()))
    logger.addHandler(notes)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield notes.lines
    finally:
        logger.removeHandler(notes)
        logger.setLevel(before)
        for handler, level in others.items():
            handler.setLevel(level)


@contextmanager
def noted_errors(monkeypatch: Any) -> Iterator[list[str]]:
    """The words of every QvlError that is made meanwhile."""
    words: list[str] = []
    make = QvlError.__init__

    def noted(self: QvlError, message: str, *, hint: str | None = None) -> None:
        words.append(f"{message}\n{hint}")
        make(self, message, hint=hint)

    with monkeypatch.context() as patch:
        patch.setattr(QvlError, "__init__", noted)
        yield words


class Watched:
    """Around an ASGI application: what its answers tell that they should not, and their statuses.

    `secrets` are the keys that clients sent, and what they said; of that an answer that is none, and
    the log, may hold nothing.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.statuses: Counter[int] = Counter()
        self.found: list[str] = []
        self.secrets: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, answer, status = bytearray(), bytearray(), 0
        known: set[str] = set()  # what answers always hold, which somebody may say by chance

        async def received() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known.update(word.decode("latin-1") for pair in message["headers"] for word in pair)
                answer.extend(b"\n".join(b": ".join(header) for header in message["headers"]))
            elif status >= 400 or b'"error": {' in message["body"]:
                answer.extend(message["body"])
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            self.statuses[status] += 1
            secrets = {*keys_of(scope["headers"]), *said_in(bytes(body))} - known
            self.secrets |= secrets
            told = leaks(answer.decode("utf-8", "replace"), SERVERS_FOLDERS, secrets)
            self.found += [f"{status} {scope['path']}: {one}" for one in told]

    def check(self, log: Iterable[str], *, may_fail: bool) -> None:
        """Raises for what was told too much, and for an answer that is the server's fault."""
        refuse(self.found, "answers tell too much")
        told = leaks("\n".join(log), SERVERS_FOLDERS, self.secrets)
        refuse(told, "the log tells too much")
        if not may_fail:
            refuse([status for status in self.statuses if status >= 500], "answers of a fault")


def keys_of(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
    for name, value in headers:
        key = value.partition(b" ")[2].decode("latin-1")
        if name == b"authorization" and len(key) >= KEY_LENGTH:
            yield key


def said_in(body: bytes) -> Iterator[str]:
    """The texts and addresses that a body's conversation holds."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict):
        for name in ("messages", "prompt", "input"):
            yield from _texts(fields.get(name))


def _texts(value: Any, name: str = "text") -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= SHORTEST.get(name, len(value) + 1):
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, str(key))
