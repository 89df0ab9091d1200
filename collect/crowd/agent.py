"""The agent of a station: the program on the robot's computer that the public site asks.

**The web can request, never command, motion.** What comes from the site is an order to begin or to
end a play and nothing else; an order with anything more in it, of an earlier turn, or without the
consent to be recorded, is refused. What moves the robot are the hands on its leader arms, through
`robot-stack teleop` under leases of the control server, with its safety filter and its stops; the
agent starts and stops that, and the recorder. It opens no port: it asks the site, over HTTPS.

Whatever becomes of the site, a recording goes to its end, and what was recorded waits in the outbox
until the site has it. While the disk is full nothing is begun, and the site is told why. A play
that was begun is never begun again, also after the agent was killed: what its recorder had written
is recovered and told of.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from collect.crowd.agent_disk import Disk
from collect.crowd.agent_link import Heart, SiteLink, Sync
from collect.crowd.agent_messages import AgentEndedBy, Order, ResultReport
from collect.crowd.agent_play import Outcome, PlayRun
from collect.crowd.evidence_metrics import measure, tips
from collect.crowd.outbox import KEPT_DONE_S, Entry, Outbox, Pairing, file_sha256
from collect.crowd.tutorial import RobotView, Seen
from collect.crowd.untrusted import open_untrusted
from collect.session import RecordingSession
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import EpisodeError

__all__ = ["OrderRefusedError", "StationAgent", "checked_order"]

POLL_S = 0.01
IDLE_S = 0.05
UNABLE_S = 5.0
FAULT_FOR_S = 10.0  # how long what went wrong is shown


class OrderRefusedError(Exception):
    """The site asked for what it may not ask for; the reason is for the log."""


def checked_order(told: dict[str, Any], fence: int) -> Order:
    """An order that may be carried out; OrderRefusedError for every other one.

    ``fence``: the highest one that was heard of.
    """
    try:
        order = Order.model_validate(told)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise OrderRefusedError(f"it is none: {wrong}") from error
    if order.do == "stop":
        return order
    missing = [
        name
        for name in ("kind", "fence", "seconds", "contributor", "consent")
        if getattr(order, name) is None
    ]
    if missing:
        raise OrderRefusedError(f"it lacks {', '.join(missing)}")
    if "record" not in order.scopes:
        raise OrderRefusedError("nobody has agreed to be recorded")
    if order.fence is not None and order.fence < fence:
        raise OrderRefusedError(f"it is of an earlier turn ({order.fence} < {fence})")
    return order


class StationAgent:
    """One station and one site; ``run`` returns when it is told to end.

    ``shared``: the site's directory of episodes, where both can write it. ConfigError for a station
    that the public can't drive.
    """

    def __init__(
        self,
        station: Station,
        outbox: Outbox,
        pairing: Pairing,
        *,
        shared: Path | None = None,
        ca: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.station = station
        self.outbox = outbox
        self.say = say
        self.plays = 0
        self._fence = outbox.fence
        self._boot = uuid.uuid4().hex
        self._n = 0
        self._run: PlayRun | None = None
        self._ended: tuple[str, AgentEndedBy, float] | None = None
        self._fault: tuple[str, float] | None = None
        self._unable: tuple[str, float] | None = None
        self._told_trouble: tuple[str | None, ...] = ()
        self._refused = ""
        self._client = StationClient(station.station)
        self._view = RobotView(station, self._client)
        self._tips = tips(station)
        self._session = RecordingSession(station, directory=outbox.episodes)
        self._disk = Disk(outbox, self._session.config.free_space_floor_bytes)
        link = SiteLink(pairing.site, pairing.token, ca)
        self._state = self._snapshot(self._view.look())
        self.sync = Sync(link, outbox, pairing.station, shared, say)
        self.heart = Heart(link, self._heartbeat, self.sync.nudge)

    def run(self, ending: Callable[[], bool]) -> None:
        """Work until ``ending()``; what is recorded then is kept, and told of the next time."""
        self.recover()
        for worker in (self.heart, self.sync):
            worker.start()
        try:
            while not ending():
                self._turn()
                time.sleep(POLL_S if self._run is not None else IDLE_S)
        finally:
            if self._run is not None:
                unheard = self._run.outcome is None
                self._run.close()
                if unheard:
                    self._keep(self._run)
            for worker in (self.heart, self.sync):
                worker.close()
            try:
                self.outbox.settle()
            except OSError as error:
                self.say(f"what ended last is not written, and recovered the next time: {error}")
            self._session.close()
            self._client.close()

    # -- what goes on ------------------------------------------------------------------------

    def _turn(self) -> None:
        self._take_orders()
        run = self._run
        if run is not None:
            unheard = run.outcome is None
            run.poll()
            if unheard and run.outcome is not None:
                self._keep(run)
            if run.over:
                self._run = None
        seen = self._view.look() if run is None else run.seen
        self._disk.look()
        self._state = self._snapshot(seen)
        trouble = (self.heart.trouble, self.sync.trouble, seen.trouble, self._disk.trouble)
        if trouble != self._told_trouble:
            for text, before in zip(trouble, self._told_trouble or (None,) * 4, strict=True):
                if text is not None and text != before:
                    self.say(text)
            self._told_trouble = trouble

    def _take_orders(self) -> None:
        while True:
            try:
                told = self.heart.orders.get_nowait()
            except queue.Empty:
                return
            try:
                self.obey(checked_order(told, self._fence))
            except OrderRefusedError as error:
                if str(error) != self._refused:
                    self._refused = str(error)
                    self.say(f"an order of the site was refused: {error}")

    def obey(self, order: Order) -> None:
        """Begin or end a play. What is done already, or can't be done now, is left: the site asks
        for it again, as long as it wants it."""
        run = self._run
        if order.do == "stop":
            if run is not None and run.order.play == order.play:
                run.stop("button")
            return
        if run is not None or self.outbox.get(order.play) is not None:
            return
        assert order.fence is not None
        self._fence = max(self._fence, order.fence)
        if (trouble := self._view.look().trouble or self._disk.trouble) is not None:
            self._wait_for_robot(order, trouble)
            return
        try:
            self.outbox.put(Entry(order.play, "begun", order.model_dump()))
        except OSError as error:
            self._wait_for_robot(order, self._disk.failed(error))
            return
        self.say(f"play {order.play}: {order.kind}, the start ritual")
        log = self.outbox.directory / "teleop.log"
        try:
            self._run = PlayRun(
                order, self.station, self._client, self._session, self._view, log, self.say
            )
        except OSError as error:
            self.say(f"play {order.play} can't begin: {error}")
            self._fault = (str(error), time.monotonic() + FAULT_FOR_S)
            self._tell(order, Outcome("lost", None, tutorial_done=False, checked=None), None)

    def _wait_for_robot(self, order: Order, trouble: str) -> None:
        """An arm that is started again is back soon; if it isn't, the play is not to be had."""
        play, since_s = self._unable or ("", 0.0)
        now = time.monotonic()
        if play != order.play:
            self._unable = (order.play, now)
        elif now - since_s > UNABLE_S:
            self.say(f"play {order.play} can't begin: {trouble}")
            self._tell(order, Outcome("lost", None, tutorial_done=False, checked=None), None)

    def _keep(self, run: PlayRun) -> None:
        """A play has ended: what came of it goes into the outbox, and from there to the site."""
        assert run.outcome is not None
        outcome, play = run.outcome, run.order.play
        self._ended = (play, outcome.by, time.monotonic())
        if outcome.by == "lost" and outcome.why:
            self._fault = (outcome.why, time.monotonic() + FAULT_FOR_S)
        path = None if outcome.saved is None else outcome.saved.path
        self._tell(run.order, outcome, path)
        self.plays += 1

    def _tell(self, order: Order, outcome: Outcome, path: Path | None) -> None:
        report = ResultReport(ended_by=outcome.by, rows=0, tutorial_done=outcome.tutorial_done)
        if path is not None:
            try:
                report = self._measured(report, outcome, path)
            except EpisodeError as error:
                path = path.rename(path.with_name(f"{order.play}.damaged"))
                days = round(KEPT_DONE_S / 86400)
                self.say(f"play {order.play}: {path} is kept for {days} days: {error}")
        result = report.model_dump(exclude={"ended_ago_s", "file"})
        entry = Entry(
            order.play,
            "ended",
            order.model_dump(),
            ended_at=time.time(),
            result=result,
            file=None if path is None else path.name,
        )
        self.outbox.keep(entry)
        self.sync.nudge()

    def _measured(self, report: ResultReport, outcome: Outcome, path: Path) -> ResultReport:
        """The report with all that the recording says. EpisodeError for a damaged one."""
        with open_untrusted(path) as episode:  # h5py and numpy say damage in many ways
            found = {
                "rows": len(episode),
                "checked": outcome.checked,
                "sha256": file_sha256(path),
                "size": path.stat().st_size,
                **measure(path, self._tips),
            }
            return ResultReport.model_validate({**report.model_dump(), **found})

    def recover(self) -> None:
        """What an agent that was killed has begun: find its recording and tell of it."""
        begun = self.outbox.entries("begun")
        if not begun:
            return
        told = {entry.file for entry in self.outbox.entries("ended", "done")}
        found: dict[str, Path] = {}
        damaged: list[Path] = []
        for path in sorted(self.outbox.episodes.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.name not in told:
                play = _play_of(path)
                if play is None:
                    damaged.append(path)
                else:
                    found[play] = path
        for entry in begun:
            cut_off = found.get(entry.play)
            if cut_off is None and damaged:  # one play is recorded at a time: the last is of this
                cut_off = damaged.pop()
            what = "nothing was recorded" if cut_off is None else cut_off.name
            self.say(f"play {entry.play} was cut off; {what}")
            order = Order.model_validate(entry.order)
            self._tell(order, Outcome("lost", None, tutorial_done=False, checked=None), cut_off)

    # -- what is told ------------------------------------------------------------------------

    def _snapshot(self, seen: Seen) -> dict[str, Any]:
        run = self._run
        ended = run is not None and run.outcome is not None
        troubles = [text for text in (seen.trouble, self._disk.trouble) if text is not None]
        fault = "; ".join(troubles) or None
        if fault is None and self._fault is not None and time.monotonic() < self._fault[1]:
            fault = self._fault[0]
        phase = "idle" if run is None else run.phase
        if fault is not None and (run is None or ended):
            phase = "fault"
        waiting = self.outbox.entries("ended")
        tutorial = None
        if run is not None and run.order.kind == "tutorial":
            tutorial = {
                "play": run.order.play,
                "step": run.tutorial.step,
                "done": list(run.tutorial.done),
            }
        return {
            "phase": phase,
            "play": None if run is None or ended else run.order.play,
            "step": None if run is None or run.step == "drive" else run.step,
            "elapsed_s": None if run is None or ended else run.elapsed_s,
            "seconds": None if run is None or ended else run.seconds,
            "tutorial": tutorial,
            "warning": {
                "level": seen.level if run is not None and not ended else 0,
                "distance_m": seen.distance_m,
                "between": seen.near,
            },
            "leaders_resting": seen.resting,
            "fault": None if fault is None else fault[:300],
            "waiting": len(waiting),
            "unknown": sum(entry.unknown_at is not None for entry in waiting),
        }

    def _heartbeat(self) -> tuple[dict[str, Any], int]:
        """The newest state, in the heartbeat's thread."""
        self._n += 1
        ended = None
        if self._ended is not None:
            play, by, at = self._ended
            ended = {"play": play, "by": by, "ago_s": time.monotonic() - at}
        told = {
            **self._state,
            "ended": ended,
            "boot": self._boot,
            "n": self._n,
            "t": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return told, self._fence


def _play_of(path: Path) -> str | None:
    """The play that a recording is of; None when that can't be read, or the recorder could not
    recover it."""
    if path.suffix != ".hdf5":
        return None
    try:
        with open_untrusted(path) as episode:
            return episode.metadata.uuid
    except EpisodeError:
        return None
