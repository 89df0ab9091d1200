"""The site as a program of its own, which can be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from collect.crowd.config import CrowdConfig, load_config
from collect.crowd.keys import write_key

__all__ = ["SiteProcess", "free_port"]

START_S = 60.0


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class SiteProcess:
    """`robot-stack crowd serve` in ``folder`` on ``database``, always at the same address."""

    def __init__(self, folder: Path, database: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        write_key(folder / "crowd.key")
        settings = {
            "database": database,
            "key_file": "crowd.key",
            "origin": self.url,
            "bind": self.url.removeprefix("http://"),
            "development": True,
            "media": "media",
            "episodes": "episodes",
        }
        self.file = folder / "crowd.yaml"
        self.file.write_text(yaml.safe_dump(settings))
        self.config: CrowdConfig = load_config(self.file, {})
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        command = ["crowd", "serve", "--config", str(self.file), "--json"]
        with (self.folder / "site.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.folder / "site.log").read_text()[-2000:]
        assert json.loads(line)["ok"]

    def ensure(self) -> None:
        """It runs, whatever happened."""
        if self._process is None:
            self.start()

    def kill(self) -> None:
        """As by `kill -9`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    @contextlib.contextmanager
    def running(self) -> Iterator[SiteProcess]:
        try:
            yield self
        finally:
            if self._process is not None:
                self.kill()
