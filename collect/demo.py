"""`robot-stack demo`: the main job on virtual hardware, from an empty machine to saved episodes.

Starts the world, the station and teleoperation as programs of their own; a scripted operator moves
the virtual leader arms by hand, and the recorder keeps what happens. Then the policy that comes
with the project, trained from such episodes, does the same by itself. Nothing on the way is
shortened: leader bus, teleoperation, control server, safety filter, follower bus, physics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from collect import demo_policy
from collect.dataset.film_strip import film_strip
from collect.recorder import SavedEpisode
from collect.session import RecordingSession
from hardware.worlds.control import WorldClient
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.episode import Episode
from robot_stack.errors import ControlPlaneError, RobotStackError
from robot_stack.processes import living_pid
from robot_stack.shared_memory import runtime_dir
from robot_stack.types import Source

__all__ = ["add_arguments", "run"]

STATION = Path(__file__).parents[1] / "configs" / "aloha_virtual.yaml"
START_S = 60.0
EPISODE_S = 60.0
END_S = 40.0
POLL_S = 0.01
NEEDED_SHARE = 2 / 3  # of episodes that must succeed


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recorded transfer, as the file tells it."""

    saved: SavedEpisode
    success: bool
    frames: int
    dropped: int
    repeated: int
    lateness_us: NDArray[np.float64]
    latency_ms: NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The whole stack on virtual hardware: starts a virtual ALOHA station, lets a scripted "
        "operator transfer a cube by moving the leader arms, records each transfer, lets the "
        "policy that comes with the project do one by itself, and prints one table. Leaves the "
        "episodes and one picture."
    )
    parser.epilog = "example: robot-stack demo --episodes 3 --directory episodes"
    parser.add_argument("--episodes", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--directory", type=Path, default=Path("episodes"), help="where they go")
    parser.add_argument("--station", type=Path, default=STATION, help="another virtual station")
    parser.add_argument("--seed", type=int, default=0, help="of the cube's first place")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    ending = Ending()
    for ender in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ender, ending)  # what was started is ended first
    station = load_station(args.station)
    if station.world is None:
        raise ControlPlaneError(f"{args.station} is not a virtual station: it has no `world`")
    with (
        _runtime() as environment,
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} episodes"),
            TimeElapsedColumn(),
            console=console,
        ) as progress,
    ):
        bar = progress.add_task("starting the station", total=args.episodes)

        def say(text: str) -> None:
            progress.update(bar, description=text)
            if not console.is_terminal:
                console.print(text)

        outcomes = []
        with _programs(station, environment, say) as start:
            with RecordingSession(station, directory=args.directory, operator="script") as session:
                for number in range(args.episodes):
                    title = f"episode {number + 1}"
                    say(f"{title}: start ritual")
                    seed = args.seed + number
                    outcomes.append(_episode(session, start, seed, title, say, ending.heed))
                    progress.advance(bar)
            say("the policy is loading")
            server = start(
                "policy", ["policy", "serve", str(demo_policy.CHECKPOINT), "--threads", "1"]
            )
            demo_policy.wait_ready(lambda: _alive(server, station, ending))
            rollout = demo_policy.policy_rollout(
                station, args.directory, args.seed + args.episodes, say, ending.heed
            )
            say("lowering the arms")
    picture = args.directory / "demo.png"
    film_strip([outcome.saved.path for outcome in outcomes], picture)
    result = _result(outcomes) | {"policy_rollout": rollout}
    result["ok"] = result["ok"] and rollout["success"]
    if not args.json:
        console.print(_table(outcomes))
        console.print(_said_of(rollout), soft_wrap=True)
        console.print(f"episodes: {args.directory}, picture: {picture}", soft_wrap=True)
        first = outcomes[0].saved.path
        console.print(f"look closer with `robot-stack episode view {first}`", soft_wrap=True)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


class Ending:
    """A handler of SIGINT and SIGTERM that raises, and remembers: Python drops an exception raised
    while a finaliser runs, so loops ask ``heed`` too."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: object) -> None:
        self.number = number
        self.heed()

    def heed(self) -> None:
        """KeyboardInterrupt or SystemExit once a signal has come."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            sys.exit(128 + self.number)


# -- the programs --------------------------------------------------------------------------------


@contextlib.contextmanager
def _runtime() -> Iterator[dict[str, str]]:
    """A directory of shared memory of our own, so that a running station is left alone."""
    directory = tempfile.mkdtemp(prefix="robot-stack-demo-", dir="/dev/shm")
    before = os.environ.get("ROBOT_STACK_RUNTIME")
    os.environ["ROBOT_STACK_RUNTIME"] = directory
    try:
        yield dict(os.environ)
    finally:
        if before is None:
            del os.environ["ROBOT_STACK_RUNTIME"]
        else:
            os.environ["ROBOT_STACK_RUNTIME"] = before
        shutil.rmtree(directory, ignore_errors=True)


Start = Callable[[str, list[str]], "subprocess.Popen[bytes]"]


@contextlib.contextmanager
def _programs(
    station: Station, environment: dict[str, str], say: Callable[[str], None]
) -> Iterator[Start]:
    """World and supervisor, up; yields what starts further subcommands. All end with the block."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    logs = runtime_dir(station.station)

    def start(name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (logs / f"{name}.log").open("ab") as log:
            started[name] = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours: we end them in order
            )
        return started[name]

    try:
        start("world", ["virtual", station.path])
        say("starting the world")
        with WorldClient(station.station) as world:
            _await(lambda: _answers(lambda: world.call("status")), "the world", started, logs)
        start("serve", ["serve", station.path])
        say("starting the control server")
        with StationClient(station.station) as client:
            _await(lambda: _up(client, station), "the station", started, logs)
        yield start
    finally:
        _end(station, started, logs)


def _end(station: Station, started: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Lower the arms and end all programs in order; a further Ctrl-C ends them all at once."""

    def hurry(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hurry)
    try:
        with StationClient(station.station) as client, contextlib.suppress(RobotStackError):
            client.request("shutdown", timeout_s=END_S)
        for process in reversed(started.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
    except KeyboardInterrupt:  # being impatient must not leave arms behind
        print("demo: ended at once", file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for process in started.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for path in logs.glob("pid.*"):  # of a supervisor that did not come to ending its own
            pid = living_pid(path)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


def _answers(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RobotStackError:
        return False
    return True


def _up(client: StationClient, station: Station) -> bool:
    """Every arm runs and every camera has shown a frame."""
    try:
        status = client.request("status", timeout_s=1.0)
    except ControlPlaneError:
        return False
    for robot in status["robots"].values():
        if robot["fault"]:
            raise ControlPlaneError(robot["fault"])
    arms = all(robot["lifecycle"] == "disarmed" for robot in status["robots"].values())
    return arms and all(camera["frames"] > 0 for camera in status["cameras"].values())


def _await(
    condition: Callable[[], bool],
    what: str,
    started: dict[str, subprocess.Popen[bytes]],
    logs: Path,
    timeout_s: float = START_S,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        for name, process in started.items():
            if process.poll() is not None:
                raise ControlPlaneError(f"{what} did not start: {_last_words(logs, name)}")
        if time.monotonic() > deadline:
            words = " / ".join(_last_words(logs, path.stem) for path in sorted(logs.glob("*.log")))
            raise ControlPlaneError(f"{what} was not up within {timeout_s:g} s; logs say: {words}")
        time.sleep(0.05)


def _last_words(logs: Path, name: str) -> str:
    try:
        lines = (logs / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return f"{name}: {lines[-1] if lines else '(said nothing)'}"


# -- one episode -----------------------------------------------------------------------------------


def _episode(
    session: RecordingSession,
    start: Start,
    seed: int,
    title: str,
    say: Callable[[str], None],
    heed: Callable[[], None],
) -> Outcome:
    """Ritual, transfer, verdict; the recording begins when the operator begins to move."""
    station = session.station
    deadline = time.monotonic() + EPISODE_S
    with WorldClient(station.station) as world:
        world.call("reset", seed=seed)
        teleop = start("teleop", ["teleop", station.path, "--wait", "30", "--json"])
        world.call("script", name="transfer_cube", seed=seed)
        action = ""
        while True:
            heed()
            status = world.call("script_status")
            if status["error"]:
                raise ControlPlaneError(f"the scripted operator gave up: {status['error']}")
            if status["phase"] == "moving" and not session.recording:
                session.start()
            if status["action"] != action:
                action = status["action"]
                say(f"{title}: {action}")
            if status["done"] and session.recording:
                break
            if teleop.poll() is not None:
                logs = runtime_dir(station.station)
                raise ControlPlaneError(f"teleoperation ended: {_last_words(logs, 'teleop')}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"no transfer within {EPISODE_S:g} s; the operator is {status['phase']}"
                )
            session.poll()
            time.sleep(POLL_S)
        success = bool(session.world_verdict())
        saved = session.stop(success, labeller="world")
        teleop.send_signal(signal.SIGINT)
        teleop.wait(20.0)
        world.call("release")
    return _outcome(saved, success)


def _alive(process: subprocess.Popen[bytes], station: Station, ending: Ending) -> None:
    ending.heed()
    if process.poll() is not None:
        words = _last_words(runtime_dir(station.station), "policy")
        raise ControlPlaneError(f"the policy server ended: {words}")


def _outcome(saved: SavedEpisode, success: bool) -> Outcome:
    with Episode.open(saved.path) as episode:
        frames = dropped = repeated = 0
        for camera in episode.cameras:
            seq = episode.frame_seq(camera)
            seq = seq[seq >= 0]
            held = len(np.unique(seq))
            frames += held
            dropped += int(seq[-1] - seq[0]) + 1 - held if held else 0
            repeated += len(seq) - held
        lateness, latency = [], []
        for robot in episode.robots:
            log = episode.log(robot)
            lateness.append(log["lateness_ns"] / 1e3)
            follows = (log["source"] == Source.DEMO) & (log["command_t_ns"] > 0)
            fresh = np.diff(log["command_seq"], prepend=-1) > 0
            answered = log[follows & fresh]
            latency.append((answered["sent_t_ns"] - answered["command_t_ns"]) / 1e6)
    return Outcome(
        saved,
        success,
        frames,
        dropped,
        repeated,
        np.concatenate(lateness),
        np.concatenate(latency),
    )


# -- what it says --------------------------------------------------------------------------------


def _percentiles(values: NDArray[np.float64], digits: int) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits)}


def _result(outcomes: list[Outcome]) -> dict[str, Any]:
    successes = sum(outcome.success for outcome in outcomes)
    dropped = sum(outcome.dropped for outcome in outcomes)
    return {
        "ok": successes >= NEEDED_SHARE * len(outcomes) and dropped == 0,
        "episodes": len(outcomes),
        "successes": successes,
        "dropped_frames": dropped,
        "repeated_rows": sum(outcome.repeated for outcome in outcomes),
        "loop_lateness_us": _percentiles(np.concatenate([o.lateness_us for o in outcomes]), 1),
        "teleop_latency_ms": _percentiles(np.concatenate([o.latency_ms for o in outcomes]), 2),
        "files": [str(outcome.saved.path) for outcome in outcomes],
    }


def _said_of(rollout: dict[str, Any]) -> str:
    """The policy's rollout in one line."""
    verdict = "[green]success[/]" if rollout["success"] else "[red]failure[/]"
    latency = rollout["chunk_latency_ms"] or {"p50": math.nan, "p99": math.nan}
    return (
        f"the shipped policy by itself: {verdict} (try {rollout['tries']}), "
        f"{rollout['chunks']} chunks, from observation to motion "
        f"{latency['p50']:.0f} / {latency['p99']:.0f} ms: {rollout['file']}"
    )


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(
        title="cube transfer, teleoperated on virtual hardware",
        caption="lateness of the arms' loops, leader sample to follower goal: p50 / p99",
    )
    for heading in ("episode", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "s", "frames", "dropped", "late us", "answer ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        late, latency = _percentiles(outcome.lateness_us, 0), _percentiles(outcome.latency_ms, 1)
        table.add_row(
            outcome.saved.path.stem,
            "[green]success" if outcome.success else "[red]failure",
            str(outcome.saved.rows),
            f"{outcome.saved.seconds:.1f}",
            str(outcome.frames),
            str(outcome.dropped),
            f"{late['p50']:.0f} / {late['p99']:.0f}",
            f"{latency['p50']:.1f} / {latency['p99']:.1f}",
        )
    return table
