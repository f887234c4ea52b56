"""Limits on what a client of the service may cost: no body without the token, no body too large, no endless wait."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEALTH = "/health"
MAX_BODY = 32 * 2**20  # bytes; a batch of 64 rows of 32,000 tokens, with their texts, has about 25 MiB
MAX_BODIES = 128 * 2**20  # of all requests together, from their first byte to their answer
MAX_CONNECTIONS = 500  # at the same time; below the usual limit of open files, 1,024
CLOSE = {"Connection": "close"}
HEADERS_S = 10.0  # for a request's headers, from the connection or the first byte on
BODY_S = 30.0  # for the rest of the request
ANSWER_S = 30.0  # until a client takes more of the answer, once the network's buffers are full


class Door:
    """The first part of the service that sees a request; it asks for the token before the body is read."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it with a status and a reason."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refused = self._refusal(scope["path"], headers)
        if refused is None:
            body = _Body(self, receive)
            try:
                return await self._app(scope, body.receive, send)
            finally:
                self._held -= body.size
        # The body is still on its way: the connection is of no more use.
        status, detail = refused
        answer = JSONResponse({"detail": detail}, status, {**CLOSE, "WWW-Authenticate": "Bearer"})
        return await answer(scope, receive, send)

    def holds(self, more: int) -> int:
        """Count bytes that have come; return how many there are of all requests that are not answered."""
        self._held += more
        return self._held

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        scheme, given = get_authorization_scheme_param(headers.get("Authorization"))
        # Compared in constant time: the time must not show how much of a guess is right.
        is_valid = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), (self._token or "").encode())
        if self._token is not None and not is_valid and path != HEALTH:
            return 401, "the request has no valid bearer token"
        length = headers.get("Content-Length", "0")
        return (413, _too_large(f"{length} bytes")) if int(length) > MAX_BODY else None


class _Body:
    """The body of a request: at most `MAX_BODY` bytes within `BODY_S` from now, while all take up to `MAX_BODIES`."""

    def __init__(self, door: Door, receive: Receive) -> None:
        self._door, self._receive, self._is_complete = door, receive, False
        self._end = asyncio.get_running_loop().time() + BODY_S
        self.size = 0

    async def receive(self) -> Message:
        """Return the next part; raise HTTPException for one that is too late or too much."""
        if self._is_complete:  # what comes now is the end of the connection, for which a handler may wait
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_S:g} s", CLOSE) from None
        length = len(message.get("body", b""))
        self.size, self._is_complete = self.size + length, not message.get("more_body", False)
        if self._door.holds(length) > MAX_BODIES:
            raise HTTPException(503, f"the requests of all clients have more than {MAX_BODIES} bytes", CLOSE)
        if self.size > MAX_BODY:
            raise HTTPException(413, _too_large("more"), CLOSE)
        return message


def _too_large(found: str) -> str:
    return f"the body has {found}, and may have at most {MAX_BODY}: send fewer rows per request (batch_size)"


class Impatient(H11Protocol):
    """A connection that ends when its client is slow: with the headers of a request, or to take the answer."""

    _waiting: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADERS_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Wait on, unless the headers are complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._waiting)
            self._waiting = None
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._writing = self.loop.call_later(ANSWER_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        _cancel(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was waited for."""
        super().connection_lost(exc)
        _cancel(self._waiting)
        _cancel(self._writing)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
