"""Serves the page on the loopback, to those who hold the token. Nothing that a browser sends changes anything."""

import importlib.util
import json
import math
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboard.runs import Runs
from protocol.errors import UserError
from protocol.extras import how_to_install

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).parent / "page"
LOOPBACK = "127.0.0.1"
# Plotly makes style elements of its own, hence the unsafe-inline for styles; scripts come from files alone.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def check_installed() -> None:
    """Raise `UserError` unless everything is here that serving needs."""
    missing = [name for name in ("starlette", "uvicorn", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the dashboard needs {' and '.join(missing)}; {how_to_install('dashboard')}")


def serve(run_dirs: list[Path], port: int, say: Callable[[str], None]) -> None:
    """Serve the page over the runs in and below these directories until the process ends; `say` is told its address,
    token included."""
    check_installed()
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()  # Whoever has the address can connect from now on.
        except OSError as error:
            raise UserError(
                f"port {port} of {LOOPBACK} cannot be had: {error.strerror}; choose another --port"
            ) from None
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        app = Guard(application(Runs(run_dirs)), port, token)
        say(f"http://{LOOPBACK}:{port}/?token={token}")
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listener])


class Guard:
    """Lets nobody pass to `app` but the browser that was given the token, and only under this server's own name.

    The Host header is checked because a page from elsewhere may have its own name resolve to 127.0.0.1.
    """

    def __init__(self, app: "ASGIApp", port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        self._token = token
        self._cookie = f"dashboard-{port}"  # browsers keep one jar for all ports of a host

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.datastructures import MutableHeaders
        from starlette.requests import Request

        if scope["type"] != "http":
            return

        async def send_guarded(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        respond = self._instead(Request(scope)) or self._app
        await respond(scope, receive, send_guarded)

    def _instead(self, request: "Request") -> "Response | None":
        """What is answered instead of the page; None lets the request pass."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        if request.headers.getlist("host") not in [[host] for host in self._hosts]:
            return PlainTextResponse("this server has another name\n", 421)
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and self._is_token(given):
            response = RedirectResponse("/", 303)  # The token must not stay in a history.
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return response
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return PlainTextResponse("open the address that the terminal shows, token included\n", 403)
        return None

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(errors="replace"), self._token.encode())


def application(runs: Runs) -> "Starlette":
    """The page, its script and style, the charts' library, and the data of `runs`."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route

    def file(path: Path) -> Callable[[Request], Response]:
        return lambda request: FileResponse(path)

    def library(request: Request) -> Response:
        from plotly.offline import get_plotlyjs

        return Response(get_plotlyjs(), media_type="text/javascript")

    def data(request: Request) -> Response:
        asked = request.query_params
        cursors, known = (asked.get(name, "").split(",") for name in ("cursors", "known"))
        axis = "seconds" if asked.get("axis") == "seconds" else "env_steps"
        reply = runs.since(cursors, known, asked.getlist("metric"), axis, asked.get("view") == "groups")
        return Response(json.dumps(finite(reply), allow_nan=False), media_type="application/json")

    files = [Route(f"/{path.name}", file(path)) for path in PAGE.iterdir()]
    return Starlette(
        routes=[Route("/", file(PAGE / "page.html")), *files, Route("/plotly.js", library), Route("/data", data)]
    )


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: null for what is not a finite number, lists for arrays."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return finite(value.tolist()) if hasattr(value, "tolist") else value
