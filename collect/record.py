"""`robot-stack record`: keys, pedal and a live panel around a recording session."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from collect.dataset.recover import describe
from collect.keys import Keys
from collect.panel import KEY_HELP, render
from collect.recorder import SavedEpisode, prioritise
from collect.session import RecordingSession
from hardware.input.pedal import PedalEvents
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError, EpisodeError

__all__ = ["ACTIONS", "Operator", "add_arguments", "run"]

POLL_S = 0.01
DRAW_S = 0.2
LOOK_S = 0.25
PATIENCE_S = 5.0  # how long --auto waits for a station that sends nothing
PLAIN_S = 5.0  # between lines of progress where there is no terminal
ACTIONS = ("toggle", "success", "failure", "discard", "again", "quit")
KEYS = {
    " ": "toggle",
    "enter": "toggle",
    "s": "success",
    "f": "failure",
    "d": "discard",
    "r": "again",
    "q": "quit",
}
SAID = {True: "success", False: "failure", None: "not labelled"}


class Operator:
    """Carries out what keys and pedals ask for, and tells what came of it.

    While recording, ``success`` and ``failure`` stop and label, ``discard`` throws the episode
    away, ``again`` does so and starts anew. Between episodes they concern the one saved last:
    label it, move it to the trash, or do so and start anew. ``toggle`` starts and stops.
    """

    def __init__(self, session: RecordingSession, show: Screen) -> None:
        self.session = session
        self.show = show
        self.quit = False
        self.failed = False

    def act(self, action: str) -> None:
        """One of ``ACTIONS``; errors are told, not raised: the session goes on."""
        try:
            self._act(action)
        except EpisodeError as error:
            self.failed = True
            self.show.tell(str(error), "bold red")

    def _act(self, action: str) -> None:
        session = self.session
        recording = session.recording
        if action == "quit":
            self.quit = True
            if recording:
                self.save(None)
        elif action == "toggle":
            self.save(None) if recording else self.start()
        elif action in ("success", "failure"):
            verdict = action == "success"
            if recording:
                self.save(verdict)
            else:
                kept = session.label_last(verdict)
                self.show.tell(f"{kept.saved.path.name} is now labelled {SAID[verdict]}", "cyan")
        elif action in ("discard", "again"):
            if recording:
                session.discard()
                self.show.tell("discarded", "yellow")
            elif action == "discard" or session.last is not None:
                path = session.trash_last()
                back = f"robot-stack episode trash --restore {path}"
                self.show.tell(f"{path.name} is in the trash; back with `{back}`", "yellow")
            if action == "again":
                self.start()

    def start(self) -> None:
        path = self.session.start()
        self.show.tell(f"recording {path.name}", "bold")
        self.show.bell()

    def save(self, success: bool | None) -> None:
        self.show.draw(saving=True)
        self.report(self.session.stop(success), success)

    def report(self, saved: SavedEpisode, success: bool | None) -> None:
        """Tell that an episode was saved."""
        text = f"saved {saved.path.name}: {saved.rows} rows, {saved.seconds:.1f} s, {SAID[success]}"
        if saved.ended != "stopped":
            text += f"; it ended by itself: {saved.ended}"
        for name, counts in saved.frames.items():
            for kind in ("dropped", "lost", "stale_rows"):
                if counts[kind]:
                    text += f"; {name}: {counts[kind]:.0f} {kind.replace('_', ' ')}"
        self.show.tell(text, "green" if saved.ended == "stopped" else "bold yellow")
        self.show.bell()


class Screen:
    """The live panel on a terminal, plain lines elsewhere."""

    def __init__(self, session: RecordingSession, console: Console, wanted: int | None) -> None:
        self.session = session
        self.console = console
        self.wanted = wanted
        self.live: Live | None = None
        self._drawn_s = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            # Drawn by our own loop: rich's refresher would be a second thread.
            self.live = Live(console=self.console, auto_refresh=False, transient=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.draw()
            self.live.stop()
            self.live = None

    def tell(self, text: str, style: str = "") -> None:
        """Something that the operator should know."""
        self.session.tell(text, style)
        if self.live is None:
            self._line(text)
        else:
            self.draw()

    def _line(self, text: str) -> None:
        self.console.print(f"record: {text}", markup=False, highlight=False, soft_wrap=True)

    def draw(self, *, saving: bool = False) -> None:
        """Show where things stand now."""
        self._drawn_s = time.monotonic()
        if self.live is not None:
            snapshot = self.session.snapshot(self.wanted)
            if saving:
                snapshot = dataclasses.replace(snapshot, state="saving")
            panel = render(snapshot, self.console.size.height)
            self.live.update(panel, refresh=True)

    def refresh(self) -> None:
        """Draw when it is time to."""
        past_s = time.monotonic() - self._drawn_s
        if self.live is not None:
            if past_s >= DRAW_S:
                self.draw()
        elif past_s >= PLAIN_S and self.session.recording:
            self._drawn_s = time.monotonic()
            now = self.session.snapshot(self.wanted)
            self._line(f"{now.episode}: {now.seconds:.0f} s, {now.rows} rows")

    def bell(self) -> None:
        """A sound for an operator whose eyes are on the robot."""
        if self.live is not None:
            self.console.bell()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    keys = "\n".join(f"  {key:12} {meaning}" for key, meaning in KEY_HELP)
    parser.description = (
        "Record episodes of a served station: one HDF5 file each, episode_0.hdf5 onwards. It only "
        "watches; somebody else moves the robots (robot-stack teleop, a policy). Stops and faults "
        "of the station do not end an episode, they are noted in it. What a killed recorder left "
        "in the directory is recovered first. Ctrl-C saves what is there, unlabelled, and ends."
    )
    parser.epilog = f"""keys:
{keys}
While recording, s and f stop and label, d throws the episode away, r does so and starts again.
Between episodes they concern the one saved last (d and r move it to the trash, see
`robot-stack episode trash`). A foot pedal does the same; in the station file:

  recording:
    pedal: {{device: "PCsensor FootSwitch", keys: {{KEY_A: toggle, KEY_B: success}}}}

with the actions {", ".join(ACTIONS)}.

examples:
  robot-stack record configs/aloha_virtual.yaml --task "hand the cube over" --operator p07
  robot-stack record configs/aloha_virtual.yaml --episodes 50 --directory data/cube
  robot-stack record configs/aloha_virtual.yaml --auto --episodes 3 --seconds 20
"""
    parser.add_argument("station", help="station file (YAML)")
    parser.add_argument("--task", metavar="TEXT", help="what is to be done, in words")
    parser.add_argument("--episodes", type=int, metavar="N", help="end after N saved episodes")
    parser.add_argument("--operator", metavar="PSEUDONYM", help="who moves the robot; not a name")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where the episodes go")
    parser.add_argument("--raw", action="store_true", help="keep pixels as they are, not as JPEG")
    parser.add_argument(
        "--seconds", type=float, metavar="MAX", help="stop each episode after this time"
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="start episodes by itself, one after another; needs --seconds",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


@contextlib.contextmanager
def _pedal(station: Station) -> Iterator[PedalEvents | None]:
    config = station.recording.pedal
    if config is None:
        yield None
        return
    for key, action in config.keys.items():
        if action not in ACTIONS:
            allowed = ", ".join(ACTIONS)
            raise ConfigError(
                f"{station.path}: recording.pedal.keys.{key}: {action!r} is no action of the "
                f"recorder (allowed: {allowed})"
            )
    with PedalEvents(config.device, config.keys) as pedal:
        yield pedal


def run(args: argparse.Namespace) -> int:
    station = load_station(args.station)
    if args.auto and args.seconds is None:
        raise ConfigError("--auto needs --seconds: how long an episode shall be")
    if args.seconds is not None and args.seconds <= 0:
        raise ConfigError(f"--seconds {args.seconds:g} is not a time; give more than 0")
    if args.episodes is not None and args.episodes < 1:
        raise ConfigError(f"--episodes {args.episodes} is no count; give 1 or more")
    console = Console(stderr=args.json)
    prioritise()
    session = RecordingSession(
        station,
        directory=args.directory,
        task=args.task,
        operator=args.operator,
        encoding="raw" if args.raw else None,
        seconds=args.seconds,
    )
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with (
            session,
            Keys() as keys,
            _pedal(station) as pedal,
            Screen(session, console, args.episodes) as screen,
        ):
            if not (keys.active or pedal or args.auto):
                raise ConfigError(
                    "there is no terminal to read keys from and no pedal in the station file; "
                    "use --auto with --seconds"
                )
            operator = Operator(session, screen)
            for recovery in session.recovered:
                screen.tell(describe(recovery), "yellow")
            _loop(operator, keys, pedal, signals, auto=args.auto, wanted=args.episodes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    report = _report(session, ok=not operator.failed)
    if args.json:
        print(json.dumps(report))
    else:
        console.print(
            f"{report['episodes']} episodes in {session.recorder.directory}: "
            f"{report['successes']} success, {report['failures']} failure, "
            f"{report['unknown']} not labelled; {report['discarded']} discarded",
            highlight=False,
            soft_wrap=True,
        )
    return int(operator.failed and args.auto)


def _loop(
    operator: Operator,
    keys: Keys,
    pedal: PedalEvents | None,
    signals: list[int],
    *,
    auto: bool,
    wanted: int | None,
) -> None:
    session, screen = operator.session, operator.show
    looked_s, pedal_trouble = 0.0, ""
    patient_until_s = time.monotonic() + PATIENCE_S
    while not operator.quit:
        if session.recording:
            patient_until_s = time.monotonic() + PATIENCE_S
        elif auto:
            try:
                operator.start()
            except EpisodeError:  # the station may just be starting, or back in a moment
                if time.monotonic() > patient_until_s:
                    raise
        ended = session.poll()
        if ended is not None:
            operator.report(ended, session.kept[-1].success)
        for action in [KEYS[key] for key in keys.poll() if key in KEYS]:
            operator.act(action)
        for event in pedal.poll() if pedal is not None else ():
            operator.act(event.action)
        if signals:
            screen.tell(f"ended by {signal.Signals(signals[0]).name}", "bold yellow")
            session.recorder.event("interrupted", signal.Signals(signals[0]).name)
            operator.act("quit")
        if wanted is not None and len(session.kept) >= wanted and not session.recording:
            operator.quit = True
        if time.monotonic() - looked_s >= LOOK_S:
            looked_s = time.monotonic()
            for trouble in session.troubles():
                screen.tell(trouble, "bold red")
            if pedal is not None and pedal.trouble != pedal_trouble:
                pedal_trouble = pedal.trouble
                screen.tell(f"pedal: {pedal_trouble or 'connected'}", "yellow")
        screen.refresh()
        time.sleep(POLL_S)


def _report(session: RecordingSession, *, ok: bool) -> dict[str, Any]:
    verdicts = [kept.success for kept in session.kept]
    saved = [kept.saved for kept in session.kept]

    def total(kind: str) -> int:
        return sum(int(counts[kind]) for one in saved for counts in one.frames.values())

    return {
        "ok": ok,
        "episodes": len(saved),
        "successes": sum(verdict is True for verdict in verdicts),
        "failures": sum(verdict is False for verdict in verdicts),
        "unknown": sum(verdict is None for verdict in verdicts),
        "discarded": session.discarded,
        "recovered": len(session.recovered),
        "rows": sum(one.rows for one in saved),
        "seconds": sum(one.seconds for one in saved),
        "dropped_frames": total("dropped") + total("lost"),
        "repeated_frames": total("repeated"),
        "save_s": max((one.save_s for one in saved), default=None),
        "session": session.session_id,
        "files": [str(one.path) for one in saved],
    }
