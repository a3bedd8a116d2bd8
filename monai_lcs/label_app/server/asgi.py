"""The application that uvicorn runs: MONAI Label's server behind a limit for the size of requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse
from monailabel.app import app as monailabel_app
from monailabel.config import settings
from starlette.exceptions import HTTPException

__all__ = ["SizeLimit", "app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SizeLimit:
    """Answers 413 to requests that are too large, and keeps nothing of them.

    Args:
        inner: the application that answers all other requests.
        most_bytes: gives the limit.

    Example:
        >>> import asyncio
        >>> async def receive():
        ...     return {"body": b""}
        >>> async def send(message):
        ...     print(message.get("status") or message["body"].decode())
        >>> request = {"type": "http", "headers": [(b"content-length", b"2000001")]}
        >>> asyncio.run(SizeLimit(None, lambda: 2e6)(request, receive, send))
        413
        {"detail":"The request is larger than 2 MB (--conf most_megabytes)."}
    """

    def __init__(self, inner: Any, most_bytes: Callable[[], float]) -> None:
        self.inner = inner
        self.most_bytes = most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        most = self.most_bytes()
        detail = f"The request is larger than {most / 1e6:.0f} MB (--conf most_megabytes)."
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0")) > most:
            while (await receive()).get("more_body"):  # otherwise the client sees a broken connection, not the answer
                pass
            await JSONResponse({"detail": detail}, 413)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, detail)
            return message

        await self.inner(scope, counted, send)


app = SizeLimit(monailabel_app, lambda: 1e6 * float(settings.MONAI_LABEL_APP_CONF.get("most_megabytes", 1000)))
