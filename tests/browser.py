"""A headless Chromium that tests speak to through two pipes: pages, their console, their requests and pictures."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# The two are first moved out of each other's way; a shell would take descriptors of one digit only.
_PLACE = """
import os, sys
for number, place in zip([os.dup(int(word)) for word in sys.argv[1:3]], (3, 4)):
    os.dup2(number, place)
    os.set_inheritable(place, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One Chromium with one page; what happened on it is in ``events``."""

    def __init__(self, profile):
        # Chromium reads commands from descriptor 3 and writes answers to 4, each ended by a zero byte.
        to_child, self._commands = os.pipe()
        self._answers, from_child = os.pipe()
        place = [sys.executable, "-ISc", _PLACE, str(to_child), str(from_child)]
        self._process = subprocess.Popen(
            [*place, CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._numbers, self._session, self.events = b"", itertools.count(1), None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """The result of a command of the DevTools protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 16)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1440, height=900, dark=False, script=True):
        """Loads a file of this machine in a window of that size."""
        self.events.clear()
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=Path(path).absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression):
        """What a JavaScript expression gives."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, path, height=None):
        """Writes what is seen, or the page down to ``height``, as PNG."""
        clip = {}
        if height:
            width = self.value("innerWidth")
            clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=bool(clip), **clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def of(self, *methods):
        """The parameters of the events of these methods since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def close(self):
        """Ends Chromium."""
        self._session = None
        os.write(self._commands, b'{"id": 0, "method": "Browser.close"}\0')
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)
