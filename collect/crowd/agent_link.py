"""An agent's talk with the site: heartbeats that bring orders, results and files that go out.

Two threads, neither of which the recording waits for. The site may be away for a second or a week:
heartbeats go on, what is to be told stays in the outbox and is told again, at growing intervals.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import queue
import random
import shutil
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from collect.crowd.agent_messages import LONGEST_AGO_S, Answer, ResultAnswer
from collect.crowd.files import episode_path
from collect.crowd.outbox import KEPT_DONE_S, Entry, Outbox, Pairing
from robot_stack.errors import ConfigError, RobotStackError

__all__ = ["Heart", "SiteError", "SiteLink", "Sync", "pair"]

TIMEOUT_S = 5.0
PATIENT_S = 60.0  # for files, and for what can't be asked twice
BEAT_S = 0.5
AWAY_S = 2.0  # between heartbeats to a site that doesn't answer
SHORTEST_S, LONGEST_S = 1.0, 60.0
REFUSED_S = 600.0  # the site does not take this; staff may mend that
MAX_ANSWER = 1 << 20
GOOD = (200, 201)


class SiteError(RobotStackError):
    """The site is away (``status`` 0) or refuses; ``retry_s`` if it says when to come again."""

    def __init__(self, status: int, text: str, retry_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_s = retry_s


class SiteLink:
    """One site over HTTP. ``ca``: certificates (PEM) to trust instead of the system's.

    ConfigError for plain http to another computer: the token would be everybody's.
    """

    def __init__(self, site: str, token: str = "", ca: Path | None = None) -> None:
        parts = urlsplit(site)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in "/":
            raise ConfigError(
                f"--site {site}: give scheme, host and port, https://crowd.example.org"
            )
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"--site {site}: plain http is for this computer only; use https")
        self.site = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = parts.hostname, parts.port
        self._token = token
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))

    def post(self, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Tell something; the site's answer. SiteError."""
        data = json.dumps(body, allow_nan=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data))}
        return self._ask("POST", path, data, headers, timeout_s)

    def put(self, path: str, file: Path, sha256: str) -> dict[str, Any]:
        """Send a file; the site's answer. SiteError."""
        headers = {"content-length": str(file.stat().st_size), "x-sha256": sha256}
        with file.open("rb") as data:
            return self._ask("PUT", path, data, headers, PATIENT_S)

    def _ask(
        self, method: str, path: str, body: Any, headers: dict[str, str], timeout_s: float
    ) -> dict[str, Any]:
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._tls
            )
        )
        if self._token:
            headers = {**headers, "authorization": f"Bearer {self._token}"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise SiteError(0, f"{self.site} does not answer: {error}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {"message": data[:200].decode(errors="replace")}
        if response.status not in GOOD or not isinstance(answer, dict):
            after = response.getheader("retry-after", "")
            text = answer.get("message", "") if isinstance(answer, dict) else "no JSON object"
            raise SiteError(
                response.status,
                f"{self.site} answers {response.status}: {str(text)[:200]}",
                float(after) if after.isdigit() else None,
            )
        return answer


def pair(link: SiteLink, code: str) -> Pairing:
    """Redeem a code that staff made; SiteError when it is not good."""
    told = link.post("/api/station/pair", {"code": code}, PATIENT_S)  # a code is good once
    return Pairing(link.site, str(told["station"]), str(told["token"]))


class _Worker:
    """A thread that works until it is told to end. ``trouble``: what is in its way, None when it
    gets on."""

    trouble: str | None = None

    def __init__(self, name: str) -> None:
        self._end = threading.Event()
        self._nudged = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """There is something new: don't wait any longer."""
        self._nudged.set()

    def close(self) -> None:
        self._end.set()
        self._nudged.set()
        self._thread.join(2 * TIMEOUT_S)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                wait_s = self._work()
            except OSError as error:  # a disk that is full or gone may come back
                self.trouble, wait_s = str(error), LONGEST_S
            self._nudged.wait(wait_s)
            self._nudged.clear()

    def _work(self) -> float:
        """One turn; how long to wait before the next."""
        raise NotImplementedError


class Heart(_Worker):
    """Tells the site twice a second how the robot is; ``orders`` is what it asks for. ``back`` is
    called when the site answers again."""

    def __init__(
        self,
        link: SiteLink,
        state: Callable[[], tuple[dict[str, Any], int]],
        back: Callable[[], None],
    ) -> None:
        super().__init__("heartbeat")
        self.orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.trouble = "no heartbeat yet"
        self._link = link
        self._state = state
        self._back = back

    def _work(self) -> float:
        state, fence = self._state()
        try:
            told = self._link.post("/api/station/heartbeat", {"state": state, "fence": fence})
            answer = Answer.model_validate(told)
        except SiteError as error:
            self.trouble = str(error)
            return AWAY_S
        except ValueError as error:
            self.trouble = f"the site says what this agent does not understand: {error}"[:300]
            return AWAY_S
        if self.trouble is not None:
            self.trouble = None
            self._back()
        for order in answer.orders:
            self.orders.put(order)
        return BEAT_S


class Sync(_Worker):
    """Brings what has ended to the site, the oldest first, again and again until it is there."""

    def __init__(
        self,
        link: SiteLink,
        outbox: Outbox,
        station: str,
        shared: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__("sync")
        self._link = link
        self._outbox = outbox
        self._station = station
        self._shared = shared
        self._say = say
        self._pause_s = SHORTEST_S
        self._refused: dict[str, tuple[float, str]] = {}  # by play: when to try again, and why

    def _work(self) -> float:
        now = time.monotonic()
        refused: str | None = None
        for entry in self._outbox.entries("ended"):
            if self._end.is_set():
                return 0.0
            again_s, why = self._refused.get(entry.play, (0.0, None))
            if again_s <= now:
                try:
                    self._tell(entry)
                    why = None
                except SiteError as error:
                    why = f"play {entry.play}: {error}"
                    if not 400 <= error.status < 500 or error.status in (401, 429):
                        self.trouble = why
                        self._pause_s = min(LONGEST_S, 2 * self._pause_s)
                        return error.retry_s or self._pause_s * random.uniform(0.7, 1.3)
                    # It is this play that the site does not take: others go on.
                    self._refused[entry.play] = (now + REFUSED_S, why)
                except (OSError, ValueError) as error:  # a disk here, or an answer that is none
                    why = f"play {entry.play}: {error}"[:300]
                    self._refused[entry.play] = (now + LONGEST_S, why)
                self._pause_s = SHORTEST_S
            refused = refused or why
        self.trouble = refused
        self._outbox.tidy()
        return LONGEST_S

    def _tell(self, entry: Entry) -> None:
        """Everything of one play; SiteError when something is missing still."""
        report = {**entry.result, "ended_ago_s": min(entry.ago_s, LONGEST_AGO_S)}
        path = f"/api/station/play/{entry.play}"
        file = entry.file if entry.result["rows"] else None  # what is damaged stays here
        if self._shared is not None and file is not None and entry.unknown_at is None:
            report["file"] = self._share(entry.play, file, self._shared)
        told = self._link.post(f"{path}/result", report, PATIENT_S)  # it reads the shared file
        answer = ResultAnswer.model_validate(told)
        if answer.file == "wanted" and file is not None:
            sha256 = str(entry.result["sha256"])
            told = self._link.put(f"{path}/file", self._outbox.episodes / file, sha256)
            answer = ResultAnswer.model_validate(told)
        if answer.file == "wanted":
            raise SiteError(409, "the site wants a file that is not here")
        if answer.file in ("erased", "unknown") and self._shared is not None:
            (self._shared / episode_path(self._station, entry.play)).unlink(missing_ok=True)
        if answer.file == "unknown":
            self._unknown(entry)
        # What the site does not want, as nothing is in it or it is damaged, stays here for a while.
        self._outbox.done(entry, keep=answer.file == "none")

    def _unknown(self, entry: Entry) -> None:
        """SiteError as long as what the site does not know is kept. Its database was brought back
        from a backup: a later one may know the play. If none comes, nobody can say any more whose
        recording it is and what they have agreed to."""
        now = time.time()
        what = "nothing was recorded" if entry.file is None else self._outbox.episodes / entry.file
        if entry.unknown_at is None:
            entry = replace(entry, unknown_at=now)
            self._outbox.keep(entry)
            self._say(f"play {entry.play} is not known to the site (any more?): {what}")
        assert entry.unknown_at is not None
        left_s = entry.unknown_at + KEPT_DONE_S - now
        if left_s > 0:
            days = math.ceil(left_s / 86400)
            raise SiteError(404, f"the site does not know it; in {days} days it goes: {what}")
        self._say(f"play {entry.play} was removed: the site has not known it for long: {what}")

    def _share(self, play: str, file: str, shared: Path) -> str:
        """Put the episode where the site looks for it; the name that it has there."""
        name = episode_path(self._station, play)
        target = shared / name
        if not target.exists():
            target.parent.mkdir(mode=0o750, exist_ok=True)
            part = target.with_suffix(".part")
            try:
                with (self._outbox.episodes / file).open("rb") as source, part.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)  # a disk that it has filled has room again
        return name
