"""A headless Chromium, driven over its debugging port: real keys, real mouse, real layout."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PATIENCE = 60.0  # seconds, on a machine that is busy with other things
KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowDown": 40,
    "ArrowUp": 38,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
}


class Page:
    """One tab.

    What it says on its console and what it refuses is kept in `complaints`, the addresses that it
    asks for in `requests`.
    """

    def __init__(self, socket):
        self.socket, self.number, self.complaints, self.loaded = socket, 0, [], 0
        self.requests = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, session=None, **params):
        """The answer of the browser to a command, or of a frame with a process of its own."""
        self.number += 1
        to = {} if session is None else {"sessionId": session}
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params, **to}))
        while True:
            said = self._next()
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]

    def open(self, path, width=1280, height=900, dark=False, script=True):
        """Show a file, or what is at an address."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        before = self.loaded
        url = path if str(path).startswith("http") else Path(path).resolve().as_uri()
        self.call("Page.navigate", url=url)
        while self.loaded == before:
            self._next()

    def frame(self):
        """The session of a sandboxed frame, which has a process of its own."""
        targets = self.call("Target.getTargets")["targetInfos"]
        (frame,) = [one["targetId"] for one in targets if one["type"] == "iframe"]
        session = self.call("Target.attachToTarget", targetId=frame, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        return session

    def value(self, expression, session=None):
        """What a JavaScript expression gives."""
        said = self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def press(self, key):
        """Press a key and let it go."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=KEYS[key], **text)  # fmt: skip

    def click(self, x, y):
        """Click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path):
        """Write the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path):
        """Write the page as it is printed."""
        printed = self.call("Page.printToPDF", printBackground=False)
        Path(path).write_bytes(base64.b64decode(printed["data"]))

    def _next(self):
        said = json.loads(self.socket.recv())
        method, params = said.get("method"), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if method == "Page.loadEventFired":
            self.loaded += 1
        if method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(str(params))
        return said


def wait(tab, expression, seconds=10.0):
    """The value of an expression, once it has one."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if value := tab.value(expression):
            return value
        time.sleep(0.05)
    raise TimeoutError(tab.value("document.body.innerText"))


def click(tab, selector, at=0.5):
    """Click into the first element of a selector, which is scrolled into view."""
    tab.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    tab.click(*(tab.value(f"{box}.{side} + {box}.{size} * {at}")
                for side, size in (("left", "width"), ("top", "height"))))  # fmt: skip


@contextmanager
def browser():
    """A page of a browser that is closed behind us, with a profile that is thrown away."""
    import websocket

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
             "--remote-allow-origins=*", "--no-first-run", "--disable-background-networking",
             "--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            socket = websocket.create_connection(_address(Path(profile)), timeout=PATIENCE)
            yield Page(socket)
            socket.close()
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _address(profile):
    """The address of the first tab, once the browser has said its port."""
    started, port = time.monotonic(), profile / "DevToolsActivePort"
    while time.monotonic() - started < PATIENCE:
        if port.is_file() and (lines := port.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("the browser does not answer")
