"""One episode of a policy on a station: to the start pose, roll out, judge, and record if asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collect.rollout import PolicyRunner, RolloutSummary
from collect.session import RecordingSession
from collect.streaming import approach
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import ControlPlaneError, RobotStackError, SharedMemoryError
from robot_stack.types import Lifecycle, Source

__all__ = ["PolicyEpisode", "Start", "world_dimensions"]

Start = Literal["policy", "home", "here"]

REACHED = 0.05  # of the start, in the joints' units
POSE_S = 60.0  # the longest way home
SUCCESS_HELD_S = 0.5  # the world's verdict must stand this long
RECORD_POLL_S = 0.01


def world_dimensions(station: Station, client: StationClient) -> int:
    """How many numbers a virtual station's world publishes of its state, 0 without one."""
    if station.world is None:
        return 0
    try:
        return int(client.ring("world", "world").dtype["env_state"].shape[0])
    except SharedMemoryError as error:
        raise ControlPlaneError(
            f"the world of {station.station} is not running ({error}); start it with "
            f"`robot-stack virtual {station.path}`"
        ) from error


class _CancelledError(Exception):
    """The operator ended it before the policy began."""


class PolicyEpisode:
    """One rollout by ``runner``; ``seconds`` ends it, on a virtual station success does too.

    ``before`` is called when the robots stand at the start: place the objects, ask a person. With
    ``recording`` the rollout is recorded from the moment the policy begins, labelled by the
    world where there is one.
    """

    def __init__(
        self,
        runner: PolicyRunner,
        *,
        seconds: float | None = None,
        start: Start = "policy",
        recording: RecordingSession | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.runner = runner
        self.station = runner.station
        self.group = runner.group
        self.client = runner.client
        self.say = runner.say
        self.seconds = seconds
        self.start = start
        self.recording = recording
        self.before = before
        if recording is not None:
            runner.event = recording.recorder.event
        self._saved = ""
        self._open = False  # whether the task has been seen undone
        self._began_s = 0.0
        self._polled_s = 0.0
        self._success_s: float | None = None

    @property
    def summary(self) -> RolloutSummary:
        return self.runner.summary

    def run(self, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Roll out once and say what came of it, as plain JSON.

        LeaseError when a person or another policy has the robots; errors while the policy runs
        are in the result, under ``ended``.
        """
        try:
            self._to_start(cancelled)
            self._go_on(cancelled)
            self.before()
            self._go_on(cancelled)
        except _CancelledError:
            self.summary.ended = "cancelled before it began"
            return self._result("", None)
        if self.recording is not None:
            self.recording.start()
        self._began_s = time.monotonic()
        fault = ""
        verdict: bool | None = None
        try:
            self.runner.run(lambda: cancelled() or self._over())
            verdict = self._verdict()
        except RobotStackError as error:
            fault = str(error)
            self.say(fault)
        finally:
            # What was cut short, by whatever, is no failure of the policy.
            cut = bool(fault) or cancelled() or self.summary.ended == "taken over"
            self._save(None if cut and not verdict else verdict)
        return self._result(fault, verdict)

    def _result(self, fault: str, verdict: bool | None) -> dict[str, Any]:
        summary = self.summary
        result: dict[str, Any] = {
            "ok": not fault and summary.chunks > 0 and verdict is not False,
            "success": verdict,
            "ended": fault or summary.ended,
            "seconds": round(summary.seconds, 2),
            "chunks": summary.chunks,
            "unanswered": summary.unanswered,
            "starved_ticks": summary.starved_ticks,
            "takeovers": summary.takeovers,
            "latency_ms": summary.latency.summary(),
        }
        if self._saved:
            result["file"] = self._saved
        return result

    # -- the way to the start ------------------------------------------------------------------

    def _to_start(self, cancelled: Callable[[], bool]) -> None:
        if self.start == "here":
            return
        # The way home yields to nobody, so ask first, as a policy: a person goes on undisturbed.
        self.client.lease(self.group.name, "policy", source=Source.POLICY).release()
        self.say("moving home")
        self.client.to_pose(
            "home", self.group.name, timeout_s=POSE_S, keep=lambda: self._go_on(cancelled)
        )
        goal = np.array(self.runner.contract.start)
        if self.start == "home" or not goal.size:
            return

        def keep() -> None:
            lease.renew()
            self._go_on(cancelled)

        def turn() -> bool:
            keep()
            self._check_armed()
            return lease.lost is None

        self.say("moving to where the demonstrations began")
        with self.client.lease(self.group.name, "policy", source=Source.POLICY) as lease:
            self.client.request("arm", {"group": self.group.name}, timeout_s=POSE_S, keep=keep)
            off = approach(lease, goal, self._sent, turn, within=REACHED, settle_s=0.0)
            lost = lease.lost
        if off.max() >= REACHED:
            worst = int(off.argmax())
            joint = self.runner.contract.action[worst].name
            raise ControlPlaneError(
                f"the start pose was not reached: {joint} is {off[worst]:.3f} away "
                f"({lost or 'something is in the way'}); "
                "see `robot-stack status`, or begin --start here"
            )

    @staticmethod
    def _go_on(cancelled: Callable[[], bool]) -> None:
        if cancelled():
            raise _CancelledError

    def _check_armed(self) -> None:
        for robot in self.group.robots:
            tick = self.client.tick(robot)
            if tick["lifecycle"] != Lifecycle.ARMED:
                state = Lifecycle(int(tick["lifecycle"])).name.lower()
                fault = tick["fault"].decode(errors="replace")
                raise ControlPlaneError(
                    f"{robot} is {state}{': ' + fault if fault else ''} on the way to the start; "
                    "mend that, `robot-stack reset`, and run the policy again"
                )

    def _sent(self) -> NDArray[np.float64]:
        return np.concatenate([self.client.tick(robot)["sent"] for robot in self.group.robots])

    # -- while it runs -------------------------------------------------------------------------

    def _over(self) -> bool:
        """Called in every turn: keeps the recording going and looks for an end."""
        now = time.monotonic()
        if now - self._polled_s >= RECORD_POLL_S:
            self._polled_s = now
            if self.recording is not None and self._saved == "":
                saved = self.recording.poll()
                if saved is not None:
                    self._saved = str(saved.path)
                    self.say(
                        f"the recording ended by itself ({saved.path}), and so does the rollout"
                    )
            verdict = self._verdict()
            self._open = self._open or verdict is False
            done = bool(verdict) and self._open  # what an earlier rollout left done does not count
            self._success_s = (self._success_s or now) if done else None
        if self._saved:
            return True
        if self._success_s is not None and now - self._success_s >= SUCCESS_HELD_S:
            return True
        return self.seconds is not None and now - self._began_s >= self.seconds

    def _verdict(self) -> bool | None:
        """The world's verdict, None where no world judges, or it is gone."""
        if self.station.world is None:
            return None
        try:
            latest = self.client.ring("world", "world").latest()
        except SharedMemoryError:
            return None
        return None if latest is None else bool(latest[1]["success"])

    def _save(self, verdict: bool | None) -> None:
        recording = self.recording
        if recording is None:
            return
        if self._saved:
            if verdict is not None:
                recording.label_last(verdict)
        elif recording.recording:
            labeller = None if verdict is None else "world"
            self._saved = str(recording.stop(verdict, labeller=labeller).path)
