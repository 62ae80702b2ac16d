"""What a visitor may send to the page's server: short text to a few addresses, no files.

Gradio's server has more addresses than the page needs (uploads among them), and fetches what a message describes as a file.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The ends of the addresses that take messages: events of the page (those that wait, and the choice of an example, which does
# not), calls of Gradio's client and of curl.
_ADDRESSES = ("/queue/join", "/run/predict", "/call/generate", "/call/v2/generate", "/cancel", "/reset")
_LONGEST = 1 << 20  # bytes of a message


class Gate:
    """ASGI middleware that refuses other messages before Gradio reads them."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        """Args:
        app: the server behind it.
        """
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if not scope["path"].rstrip("/").endswith(_ADDRESSES):
            await _refuse(send, 404)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _LONGEST or message["type"] == "http.disconnect":
                await _refuse(send, 413)
                return
        if names_a_file(body):
            await _refuse(send, 400)
            return
        read = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def names_a_file(body: bytes) -> bool:
    """Whether a message holds what Gradio would take for a file, or is no JSON."""
    try:
        values = [json.loads(body or b"{}")]
    except (ValueError, RecursionError):
        return True
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if "path" in value or "url" in value or "_type" in value:
                return True
            values += value.values()
        elif isinstance(value, list):
            values += value
    return False


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"detail": "not taken here"}'})
