"""One play at the robot: an ordinary recorded teleoperation, begun and ended for the public.

    homing ── the followers follow ──► tutorial or playing ── ended ──► lowering ──► over

`robot-stack teleop` performs the start ritual and passes the leaders' motion on, in a process of
its own that ends with this one; the recorder is the ordinary one; the followers are lowered by the
control server's own `sleep`. All of them hold leases of the control server, so a person or a stop
goes before them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collect.crowd.agent_messages import AgentEndedBy, Order, Phase
from collect.crowd.tutorial import RobotView, Seen, Tutorial
from collect.recorder import SavedEpisode
from collect.session import RecordingSession
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import ControlPlaneError, EpisodeError

__all__ = ["Outcome", "PlayRun"]

SQUEEZE_S = 60.0  # nobody takes hold: the place is wanted by others
START_S = 120.0  # ritual and all
TROUBLE_S = 3.0  # an arm that is started again is back by then
END_TELEOP_S = 20.0
LOWER_S = 90.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a play ended. ``saved``: the episode, None when nothing was recorded; ``checked`` the
    world's verdict where there is one; ``why`` in words where it ended by itself."""

    by: AgentEndedBy
    saved: SavedEpisode | None
    tutorial_done: bool
    checked: bool | None
    why: str = ""


class PlayRun:
    """Call ``poll`` every 10 ms or so until ``over``; ``outcome`` is there as soon as it ended."""

    def __init__(
        self,
        order: Order,
        station: Station,
        client: StationClient,
        session: RecordingSession,
        view: RobotView,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        assert order.seconds is not None
        self.order = order
        self.seconds = order.seconds
        self.phase: Phase = "homing"
        self.step: str | None = "home"
        self.over = False
        self.outcome: Outcome | None = None
        self.seen = Seen()
        self.tutorial = Tutorial(frozenset(view.followers))
        self._station, self._client, self._session, self._view = station, client, session, view
        self._log, self._say = log, say
        self._led = self._moved = False
        self._asked: AgentEndedBy | None = None
        self._began_s = time.monotonic()
        self._follows_s: float | None = None
        self._looked_s = self._well_s = self._began_s
        self._lowering: int | None = None
        self._lower_until_s = 0.0
        self._teleop = self._start_teleop()

    @property
    def elapsed_s(self) -> float | None:
        """How long the robot has followed; None before it does."""
        return None if self._follows_s is None else time.monotonic() - self._follows_s

    def stop(self, by: AgentEndedBy) -> None:
        """End it as soon as may be."""
        self._asked = self._asked or by

    def poll(self) -> None:
        """Go on; blocks for a second when the recording is completed."""
        if self.phase == "lowering":
            self._lower()
            return
        saved = self._session.poll()
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self.seen = self._view.look()
            if self.seen.trouble is None:
                self._well_s = now
        if saved is not None:
            self._end("time", f"the recorder ended: {saved.ended}", saved)
        elif (reason := self._reason(now)) is not None:
            self._end(*reason)
        elif self._follows_s is None:
            self._wait(now)
        elif self.order.kind == "tutorial":
            self.tutorial.see(self.seen, following=True)
            self.step = self.tutorial.step

    def close(self) -> None:
        """End at once, keeping what was recorded; the arms hold where they are."""
        if self.outcome is None:
            self._end("lost", "the agent ends")
        self._end_teleop(END_TELEOP_S)
        self._hold()
        self.over = True

    # -- starting ----------------------------------------------------------------------------

    def _start_teleop(self) -> subprocess.Popen[bytes]:
        child = [sys.executable, "-m", "collect.crowd.teleop_child", str(os.getpid())]
        options = [str(self._station.path), "--wait", f"{SQUEEZE_S:g}", "--unattended", "--json"]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*child, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, now: float) -> None:
        """The ritual goes on; when the leaders are free the recording begins."""
        self._led = self._led or self.seen.led
        self.tutorial.see(self.seen, following=False)
        self.step = "squeeze" if "home" in self.tutorial.done else "home"
        if not (self._led and self.seen.free):
            return
        order = self.order
        try:
            path = self._session.start(
                uuid=order.play,
                operator=order.contributor,
                consent=order.consent,
                task_id=order.task,
                task=order.instruction,
                language=order.instruction,
                extra={"play": order.play, "kind": order.kind, "scopes": list(order.scopes)},
            )
        except (EpisodeError, OSError) as error:
            self._end("lost", str(error))
            return
        self._say(f"play {order.play}: recording {path.name}")
        self._follows_s = now
        self.tutorial.see(self.seen, following=True)
        self.phase = "tutorial" if order.kind == "tutorial" else "playing"
        self.step = self.tutorial.step if order.kind == "tutorial" else "drive"

    # -- ending ------------------------------------------------------------------------------

    def _reason(self, now: float) -> tuple[AgentEndedBy, str] | None:
        """Why it is to end now."""
        if self._asked is not None:
            return self._asked, ""
        if self._teleop.poll() is not None:
            return "lost", f"teleoperation ended: {self._last_words()}"
        if now - self._well_s >= TROUBLE_S and self.seen.trouble is not None:
            return "lost", self.seen.trouble
        if self._follows_s is None:
            if now - self._began_s >= START_S:
                return "time", "nobody took hold of the leaders"
            return None
        if now - self._follows_s >= self.seconds:
            return "time", ""
        self._moved = self._moved or not self.seen.resting
        if self.order.kind == "tutorial":
            return ("rest", "") if self.tutorial.passed else None
        return ("rest", "") if self.seen.resting and self._moved else None

    def _end(self, by: AgentEndedBy, why: str = "", saved: SavedEpisode | None = None) -> None:
        checked = None
        if self._follows_s is not None and saved is None:
            verdict = self._session.world_verdict()
            if self.order.kind == "task" and self.order.task == self._station.task:
                checked = verdict
            saved = self._session.stop(checked, labeller="world")
        if why:
            self._say(f"play {self.order.play}: {why}")
        self.outcome = Outcome(by, saved, self.tutorial.passed, checked, why)
        self.phase, self.step = "lowering", "rest"
        self._teleop.send_signal(signal.SIGINT)
        self._lower_until_s = time.monotonic() + END_TELEOP_S

    def _lower(self) -> None:
        """Once teleoperation has given its leases back: down to the sleep pose, slowly."""
        now = time.monotonic()
        if self._teleop.poll() is None:
            if now > self._lower_until_s:
                self._end_teleop(0.0)
            return
        self.seen = self._view.look()
        if self._lowering is None:
            if self.seen.trouble is not None or not self._led:
                self.over = (
                    True  # a robot that is stopped stays where it is; so does one that slept
                )
                return
            try:
                assert self._station.teleop is not None
                self._lowering = self._client.post("sleep", {"group": self._station.teleop.group})
            except ControlPlaneError as error:
                self._say(f"the arms were not lowered: {error}")
                self.over = True
            self._lower_until_s = now + LOWER_S
            return
        reply = self._client.poll_reply(self._lowering)
        if reply is None and now < self._lower_until_s:
            return
        if reply is None or reply.kind == "error":
            told = "no answer" if reply is None else reply.body.get("message")
            self._say(f"the arms were not lowered: {told}")
        if reply is None:
            self._hold()
        self.over = True

    def _hold(self) -> None:
        """If they are being lowered: the arms brake and hold."""
        if self._lowering is not None and not self.over:
            assert self._station.teleop is not None
            self._client.give_up(self._lowering, "sleep", self._station.teleop.group)

    def _end_teleop(self, patience_s: float) -> None:
        try:
            self._teleop.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._teleop.kill()  # its leases run out: the arms brake and hold
            self._teleop.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")[:200]
