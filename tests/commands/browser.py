"""A headless Chromium, driven by the DevTools protocol over tornado's WebSocket."""

import asyncio
import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
START_SECONDS = 60.0


@dataclass
class Visit:
    """What happened while a page was loaded, and what it answers."""

    requests: list[str] = field(default_factory=list)
    """The URL of every request."""
    messages: list[str] = field(default_factory=list)
    """Messages in the console, and exceptions."""
    values: list[Any] = field(default_factory=list)
    """The values of the expressions."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """The nodes of the accessibility tree, as a screen reader gets them."""


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[str]:
    """Run a browser with an empty profile; give the address of its DevTools."""
    with subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            port = profile / "DevToolsActivePort"
            deadline = time.monotonic() + START_SECONDS
            while not port.exists() or not port.read_text():
                assert process.poll() is None, "the browser ended"
                assert time.monotonic() < deadline, "the browser did not start"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port.read_text().split()[0]}"
        finally:
            process.terminate()


def visit(
    address: str, page: Path, width: int, *expressions: str, picture: Path | None = None
) -> Visit:
    """Load a file in a new tab `width` pixels wide, then evaluate expressions.

    The PNG file `picture` gets an image of the whole page.
    """
    new = urllib.request.Request(f"{address}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(new) as response:
        socket = json.load(response)["webSocketDebuggerUrl"]
    url = page.absolute().as_uri()
    seen, image = asyncio.run(_visit(socket, url, width, expressions, draws=picture is not None))
    if picture is not None:
        picture.write_bytes(image)
    return seen


async def _visit(
    socket: str, url: str, width: int, expressions: tuple[str, ...], *, draws: bool
) -> tuple[Visit, bytes]:
    connection = await websocket_connect(socket, max_message_size=2**28)
    try:
        tab = _Tab(connection)
        seen = await _look(tab, url, width, expressions)
        return seen, await tab.picture() if draws else b""
    finally:
        connection.close()
        while await connection.read_message() is not None:  # until its socket is closed
            pass


async def _look(tab: "_Tab", url: str, width: int, expressions: tuple[str, ...]) -> Visit:
    for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
        await tab.call(f"{domain}.enable")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    await tab.call("Emulation.setDeviceMetricsOverride", **size)
    await tab.call("Page.navigate", url=url)
    while not tab.is_loaded:
        await tab.read()
    for expression in expressions:
        answer = await tab.call("Runtime.evaluate", expression=expression, returnByValue=True)
        tab.visit.values.append(answer["result"].get("value"))
    tree = await tab.call("Accessibility.getFullAXTree")
    tab.visit.nodes = tree["nodes"]
    return tab.visit


class _Tab:
    """A tab: sends commands, and collects the events between their answers."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self.visit = Visit()
        self.is_loaded = False
        self._number = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        await self._connection.write_message(json.dumps(message))
        while (answer := await self.read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def picture(self) -> bytes:
        """Return the whole page as a PNG file."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def read(self) -> dict[str, Any]:
        """Return the next message; remember what it says about the page."""
        text = await asyncio.wait_for(self._connection.read_message(), START_SECONDS)
        assert text is not None, "the browser closed the connection"
        message: dict[str, Any] = json.loads(text)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.visit.requests.append(parameters["request"]["url"])
            case "Log.entryAdded":
                self.visit.messages.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.visit.messages.append(json.dumps(parameters))
            case "Page.loadEventFired":
                self.is_loaded = True
        return message
