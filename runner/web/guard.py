"""Answers only what the page itself asks: no other page, whatever the browser or a proxy says of where it is.

Gradio takes its own address from headers that anyone can send, and lets pages of other ports of this machine call it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from runner.errors import SettingError

PORTS = range(7860, 7960)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OwnPageOnly:
    """An ASGI application before another: forwarding headers are dropped, and requests of other pages refused."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if not _is_forwarding(name)]
        given = dict(headers)
        if _is_of_another_page(given):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"requests of other pages are not answered"})
            return
        await self._app({**scope, "headers": headers}, receive, send)


def _is_of_another_page(given: Mapping[bytes, bytes]) -> bool:
    """Whether another page asks, by what the browser says: by its origin, or by embedding what a GET would answer.

    A link on another page may be followed: what it opens is no part of that page.
    """
    origin = urlsplit(given.get(b"origin", b"").decode("latin-1")).netloc
    if b"origin" in given and origin != given.get(b"host", b"").decode("latin-1"):
        return True
    from_elsewhere = given.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    return from_elsewhere and (given.get(b"sec-fetch-mode"), given.get(b"sec-fetch-dest")) != (b"navigate", b"document")


def given_port() -> int | None:
    """`GRADIO_SERVER_PORT`, which Gradio reads when it is imported.

    Raises:
        SettingError: it is no port.
    """
    given = os.environ.get("GRADIO_SERVER_PORT")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
        raise SettingError(f"GRADIO_SERVER_PORT={given}: should be a port, such as {PORTS[0]}")
    return int(given)


def _is_forwarding(name: bytes) -> bool:
    return name.startswith(b"x-forwarded-") or name in (b"forwarded", b"x-real-ip", b"x-original-url")
