"""The layers around the routes: ids, one line of log and the last net; and what a body may be.

Both are plain ASGI: a body is refused before it is read whole, and nothing is held back from a
stream.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qvl.serve.admission import Admission
from qvl.serve.answers import ClientLeftError
from qvl.serve.errors import Refusal, logged, respond
from qvl.serve.limits import FILE_BYTES, JSON_KEYS, JSON_NESTING, JSON_VALUES, Limits
from qvl.serve.spans import request_span

log = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MARKS = re.compile(rb'["\[\]{},:]')
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
UPLOADS, FORM_BYTES = "/v1/files", 64 * 2**10  # beside a file, in the form that it comes in
SHORTLY_S, AWHILE_S = 0.05, 0.5  # for the rest of a body that is not wanted
LEFT = 499  # nginx's number for a client that left; only in the log


class Front:
    """The outermost layer: gives the request its id and its span, logs one line without contents, and
    turns what no route has handled into an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _ID.fullmatch(asked) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began_s, status = time.monotonic(), 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers["cache-control"] = "no-store"
            await send(message)

        with request_span(scope, request_id) as span:
            try:
                await self._app(scope, receive, marked)
            except ClientLeftError:
                status = LEFT
            except Exception as error:  # noqa: BLE001 - the outermost edge of a request
                failure = logged(error, request_id)
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                elif not status:
                    await respond(failure, request_id)(scope, receive, marked)
            finally:
                if span is not None:
                    span.ended(scope, status)
        took_s = time.monotonic() - began_s
        route = getattr(scope.get("route"), "path", "-")
        log.info("%s %s %d %.3f s", request_id, route, status, took_s)


class BodyCheck:
    """Takes bodies of JSON alone, at most so many bytes within so many seconds, of a sane shape; and
    files of UPLOADS, which go through as they come.

    The routes read the checked body in one piece. A request to compute something is refused while
    the queue is full, before its body is looked at: that is what keeps refusals quick.
    """

    def __init__(self, app: ASGIApp, limits: Limits, admission: Admission) -> None:
        self._app = app
        self._limits = limits
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_headers(scope)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        if scope["path"] == UPLOADS:
            await self._app(scope, self._counted(scope, receive), send)
            return
        try:
            self._admission.refuse_if_full()
        except Refusal:
            await _discard(receive, SHORTLY_S)
            raise
        body = await self._read(scope, receive)
        check_shape(body)
        is_read = False

        async def checked() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, checked, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """The body as it comes, refused once it is too large or too slow."""
        headers = Headers(scope=scope)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise _closing(415, "unsupported_media_type", "the body must be multipart/form-data")
        limit, length, came = FILE_BYTES + FORM_BYTES, headers.get("content-length", "0"), 0
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit)
        until_s = asyncio.get_running_loop().time() + self._limits.upload_s

        async def counted() -> Message:
            nonlocal came
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError as err:
                said = f"the body did not arrive within {self._limits.upload_s:g} s"
                raise _closing(408, "body_too_slow", said) from err
            came += len(message.get("body", b""))
            if came > limit:
                raise _too_large(limit)
            return message

        return counted

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > self._limits.header_count or size > self._limits.header_bytes:
            raise _closing(431, "headers_too_large", "the request's headers are too large")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise _closing(400, "invalid_request", "the request has a length and is chunked")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        try:
            limit = self._check_body(Headers(scope=scope))
        except Refusal:
            await _discard(receive, AWHILE_S)
            raise
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as err:
            message = f"the body did not arrive within {self._limits.body_s:g} s"
            raise _closing(408, "body_too_slow", message) from err

    def _check_body(self, headers: Headers) -> int:
        """How many bytes it may have, after what its headers say of it is checked."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if kind != "application/json" and (kind or not is_empty):
            raise _closing(415, "unsupported_media_type", "the body must be application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _closing(415, "unsupported_media_type", "the body must not be compressed")
        limit, length = self._limits.body_bytes, headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit)
        return limit


async def _discard(receive: Receive, within_s: float) -> None:
    """Take in what is on its way: a client that is still sending would not see the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while (await receive()).get("more_body", False):
                pass


def check_shape(body: bytes) -> None:
    """Refuses what is costly to read: deep nesting, very many values and keys, which may all be wrong,
    other encodings than UTF-8.

    A linear scan, which jumps over strings. Whether it is JSON is for the parser to say.
    """
    if b"\0" in body:  # UTF-16 or UTF-32, which Python's parser would take
        raise Refusal(400, "invalid_json", "the body is not JSON in UTF-8")
    depth = values = keys = at = 0
    while (mark := _MARKS.search(body, at)) is not None:
        at, sign = mark.end(), mark[0]
        values, keys = values + (sign != b":"), keys + (sign == b":")
        if sign == b'"':
            at = _end_of_string(body, at)
        else:
            depth += (sign in b"[{") - (sign in b"]}")
        if depth > JSON_NESTING:
            raise Refusal(400, "invalid_json", f"the body is nested deeper than {JSON_NESTING}")
        if values > JSON_VALUES:
            raise Refusal(400, "invalid_json", f"the body has more than {JSON_VALUES} values")
        if keys > JSON_KEYS:
            raise Refusal(400, "invalid_json", f"the body has more than {JSON_KEYS} keys")


def _end_of_string(body: bytes, at: int) -> int:
    """The index after the quote that ends a string, whose first character is at `at`."""
    quote = body.find(b'"', at)
    if quote >= 0 and body.find(b"\\", at, quote) < 0:  # nearly always, and far quicker
        return quote + 1
    end = _STRING.match(body, at)
    return len(body) if end is None else end.end()


def _closing(status: int, code: str, message: str) -> Refusal:
    """A refusal of a body that is not read to its end, so the connection cannot be used again."""
    return Refusal(status, code, message, headers={"connection": "close"})


def _too_large(limit: int) -> Refusal:
    return _closing(413, "request_too_large", f"the body is over {limit} bytes")
