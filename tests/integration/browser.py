"""A headless Chromium, driven by the DevTools protocol over its pipe: no driver, no port, no package.

Protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a zero byte; Chromium
reads them from file descriptor 3 and writes to 4.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_S = 30.0


def find_chromium() -> str | None:
    """The first browser of this family on the path."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one page. Use as a context."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_read, self._to_write = os.pipe()
        self._to_read, to_write = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"]
        options += [f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--disable-gpu", "about:blank"]
        # The shell gives the pipes the numbers that Chromium looks for.
        shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash"]
        self._process = subprocess.Popen(
            [*shell, executable, *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._received = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors of the console, exceptions nobody caught, and requests that left the page."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        self._send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to_write)
        os.close(self._to_read)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window, in CSS pixels, and which colours the reader prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path, mark: str = "ready", deadline_s: float = 20.0) -> float:
        """Load a file and wait for `data-<mark>` on its root. Milliseconds from navigation to then, by its clock."""
        self.complaints.clear()
        self._call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self._call("Page.navigate", url=page.as_uri())
        self.wait(f"document.documentElement?.dataset.{mark} !== undefined", deadline_s)
        return float(self.run(f"document.documentElement.dataset.{mark}"))

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises AssertionError with the page's exception."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {_message(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def wait(self, condition: str, deadline_s: float = 10.0) -> None:
        """Until a JavaScript expression holds."""
        deadline = time.monotonic() + deadline_s
        while not self.run(condition):
            assert time.monotonic() < deadline, f"not within {deadline_s} s: {condition}; complaints: {self.complaints}"
            time.sleep(0.02)

    def screenshot(self) -> np.ndarray:
        """What is to be seen, [height, width, 3] uint8."""
        png = base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def point(self, x: float, y: float) -> None:
        """Move the pointer, in CSS pixels of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], end: tuple[float, float], num_moves: int = 5) -> None:
        """Press the left button at `start` and let go at `end`."""
        held = {"button": "left", "clickCount": 1}
        self.point(*start)
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **held)
        for move in range(1, num_moves + 1):
            x, y = (a + (b - a) * move / num_moves for a, b in zip(start, end, strict=True))
            self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **held)

    def double_click(self, x: float, y: float) -> None:
        for count in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._send(method, **parameters)
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = self._receive(deadline, method)
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _send(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to_write, data) :]
        return self._number

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._to_read], [], [], max(deadline - time.monotonic(), 0))
            more = os.read(self._to_read, 1 << 20) if ready else b""
            if not more:
                raise AssertionError(f"Chromium does not answer to {method} (exit status {self._process.poll()})")
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(_message(parameters["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(part.get("value", part)) for part in parameters["args"]))
        elif message["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "blob:", "data:", "about:")):
                self.complaints.append(f"request to {url}")


def _message(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
