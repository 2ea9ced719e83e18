"""Chromium without a window, driven through its DevTools pipe, to look at pages with.

It cannot reach any network but this machine, so a page that needed one would fail.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium, chromium-browser or google-chrome on PATH to look at the page with",
)


class Page:
    """A tab: what its scripts say, what it asked the network for, and what it complained about."""

    def __init__(self, browser: "Browser", url: str) -> None:
        self._browser = browser
        target = browser.command("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        size = {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Page.navigate", url=url)
        self.wait_until("document.readyState === 'complete' && document.querySelector('footer')")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.command(method, self._session, **parameters)

    def js(self, expression: str) -> Any:
        """What an expression, awaited, comes to."""
        reply = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait_until(self, expression: str) -> None:
        deadline = time.monotonic() + 20
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def click(self, selector: str, *, shift: bool = False) -> None:
        """A real mouse click in the middle of an element."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect();"
            "return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            box |= {"button": "left", "clickCount": 1, "modifiers": 8 if shift else 0}
            self.command("Input.dispatchMouseEvent", type=kind, **box)

    def press(self, key: str, *, shift: bool = False) -> None:
        codes = {"Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13}
        code = codes.get(key) or ord(key.upper())
        text = {"text": "\r" if key == "Enter" else key} if key == "Enter" or len(key) == 1 else {}
        held = {"modifiers": 8 if shift else 0, "windowsVirtualKeyCode": code}
        down = "keyDown" if text else "rawKeyDown"
        self.command("Input.dispatchKeyEvent", type=down, key=key, **text, **held)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=key, **held)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.command("Input.insertText", text=text)

    def each(self, selector: str, value: str) -> list[Any]:
        """What a value comes to for each element `e`."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return list(self.js(f"{found}.map(e => {value})"))

    def ids(self) -> set[str]:
        """The images in the gallery."""
        return set(self.each("#grid .tile", "e.dataset.id"))

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)}).textContent"))

    def events(self, *methods: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] in methods
        ]

    def complaints(self) -> list[Any]:
        """Uncaught errors, and everything the browser logs: blocked loads, policy violations."""
        logged = self.events("Log.entryAdded", "Runtime.exceptionThrown")
        said = self.events("Runtime.consoleAPICalled")
        return [*logged, *(entry for entry in said if entry["type"] in ("error", "warning"))]

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]


class Browser:
    """Chromium without a window and without a network."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._buffer = b""
        # Chromium reads commands from descriptor 3 and writes replies to 4.
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        place = "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4)"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", f"{place}; os.execv(sys.argv[3], sys.argv[3:])"),
                *map(str, high),
                *(CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--disable-gpu"),
                *("--no-sandbox", "--no-first-run", "--disable-background-networking"),
                *("--proxy-server=127.0.0.1:9", "--disable-dev-shm-usage"),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for each in high:
            os.close(each)

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                result: dict[str, Any] = reply["result"]
                return result
            self.events.append(reply)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], 60)[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
