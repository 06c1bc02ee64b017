"""Start the server with known delays in a process of its own, and read its log.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from inferlab.client.mockserver import FAULTS, Settings
from inferlab.errors import MeasurementError, UserError

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Log:
    """When a request arrived and when its chunks were written, seconds of perf_counter."""

    received: float
    writes: tuple[float, ...]


class MockServer:
    """A context manager: `url` while it lasts; the process ends with it, or with its parent.

    Settings are those of `mockserver.Settings`; the model's name in a request may be one of FAULTS.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        if self.settings.fault and self.settings.fault not in FAULTS:
            raise UserError(f"unknown fault {self.settings.fault!r}; known: {', '.join(FAULTS)}")
        self.port = 0
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def __enter__(self) -> MockServer:
        command = [sys.executable, "-m", "inferlab.client.mockserver"]
        self._process = subprocess.Popen(  # noqa: S603
            [*command, json.dumps(asdict(self.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            self.__exit__()
            raise MeasurementError("the mock server did not start")
        self.port = int(line)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def log(self) -> dict[str, Log]:
        """Request id -> what the server saw of it since the last call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", "/log")
            found = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return {
            name: Log(entry["received"], tuple(entry["writes"])) for name, entry in found.items()
        }
