"""Whom a local page answers: itself alone, by the names of this machine. An ASGI layer around it."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Application = Callable[
    [Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]

#: Nothing but the page's own files is loaded or asked, and no other page may hold it in a frame.
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def guarded(application: Application, hosts: Collection[str]) -> Application:
    """The application for requests to one of the hosts, NAME:PORT, and from pages of theirs.

    Another name in `Host` is a page elsewhere whose name was made to mean this machine (DNS rebinding); another
    `Origin` is a form or script of such a page.
    """
    origins = {f"http://{host}" for host in hosts}

    async def answer(scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get(b"host") not in hosts or headers.get(b"origin", next(iter(origins))) not in origins:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"this page is for this machine alone\n"})
            return

        async def dressed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name for name, _ in given}
                message["headers"] = given + [pair for pair in HEADERS if pair[0] not in names]
            await send(message)

        await application(scope, receive, dressed)

    return answer
