"""`robot-stack demo franka`: pick and place taught to a virtual FR3, recorded, and done again.

Starts the world (the robot's network protocol with physics behind it), the station and
teleoperation as programs of their own. A scripted operator does the task by SpaceMouse-like twists
and by a GELLO leader in turns; the recorder keeps what happens. Then one of the episodes is
replayed, on the same table. Nothing on the way is shortened: device, teleoperation, control server,
safety filter, inverse kinematics, libfranka, FCI, physics.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from collect.dataset.film_strip import film_strip
from collect.demo_outcome import NEEDED_SHARE, Outcome, outcome_of, result_of, table_of
from collect.demo_programs import Ending, Start, announced, last_words, programs, runtime
from collect.session import RecordingSession
from hardware.worlds.control import WorldClient
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError
from robot_stack.shared_memory import runtime_dir

__all__ = ["run"]

STATION = Path(__file__).parents[1] / "configs" / "franka_virtual.yaml"
HANDS = ("twists", "gello")  # in turns
EPISODE_S = 120.0
HOME_S = 40.0
REPLAY_S = 120.0
SETTLE_S = 1.5  # until the world has seen a cube that lies still for long enough
POLL_S = 0.01


def run(args: argparse.Namespace) -> int:
    """The demonstration; see ``collect.demo`` for the arguments."""
    console = Console(stderr=args.json)
    ending = Ending()
    for ender in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ender, ending)  # what was started is ended first
    station = load_station(args.station or STATION)
    if station.world is None:
        raise ControlPlaneError(f"{station.path} is not a virtual station: it has no `world`")
    outcomes: list[Outcome] = []
    hands: list[str] = []
    with (
        runtime() as environment,
        announced(console, "starting the station", args.episodes) as (say, advance),
        programs(station, environment, say) as start,
    ):
        with RecordingSession(station, directory=args.directory, operator="script") as session:
            for number in range(args.episodes):
                hand = HANDS[number % len(HANDS)]
                title = f"episode {number + 1} by {hand}"
                outcomes.append(
                    _episode(session, start, args.seed + number, hand, title, say, ending.heed)
                )
                hands.append(hand)
                advance()
        # A success is shown again, if there is one.
        number = next((i for i, outcome in enumerate(outcomes) if outcome.success), 0)
        say(f"replaying episode {number + 1}")
        seed = args.seed + number
        replayed = _replay(station, start, outcomes[number].saved.path, seed, ending.heed)
        say("ending the station")
    picture = args.directory / "demo_franka.png"
    film_strip([outcome.saved.path for outcome in outcomes], picture)
    result = result_of(outcomes) | {"hands": hands, "replayed": replayed}
    # Frames that a busy machine dropped are told, and are no failure of what was taught.
    needed = NEEDED_SHARE * len(outcomes)
    result["ok"] = result["successes"] >= needed and replayed["ok"]
    if not args.json:
        console.print(table_of(outcomes, "pick and place, taught to a virtual FR3"))
        console.print(_said_of(replayed), soft_wrap=True)
        console.print(f"episodes: {args.directory}, picture: {picture}", soft_wrap=True)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _episode(
    session: RecordingSession,
    start: Start,
    seed: int,
    hand: str,
    title: str,
    say: Callable[[str], None],
    heed: Callable[[], None],
) -> Outcome:
    """Home, task, verdict; the recording begins when the operator begins to move the robot."""
    station = session.station
    say(f"{title}: to the ready pose")
    _home(station)
    deadline = time.monotonic() + EPISODE_S
    logs = runtime_dir(station.station)
    with WorldClient(station.station) as world:
        world.call("reset", seed=seed)
        options = ["--device", hand, "--wait", "60", "--auto-recover", "--json"]
        teleop = start("teleop", ["teleop", station.path, *options])
        world.call("script", name="pick_place", hand=hand, seed=seed)
        action = ""
        while True:
            heed()
            status = world.call("script_status")
            if status["error"]:
                words = last_words(logs, "teleop")
                raise ControlPlaneError(f"the operator gave up: {status['error']} ({words})")
            if status["phase"] == "moving" and not session.recording:
                session.start()
            if status["action"] != action:
                action = status["action"]
                say(f"{title}: {action}")
            if status["done"] and session.recording:
                break
            if teleop.poll() is not None:
                raise ControlPlaneError(f"teleoperation ended: {last_words(logs, 'teleop')}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"no placing within {EPISODE_S:g} s; the operator is {status['phase']}"
                )
            session.poll()
            time.sleep(POLL_S)
        success = bool(session.world_verdict())
        saved = session.stop(success, labeller="world")
        teleop.send_signal(signal.SIGINT)
        teleop.wait(20.0)
        world.call("release")
    return outcome_of(saved, success)


def _home(station: Station) -> None:
    with StationClient(station.station) as client:
        for group in station.groups:
            client.to_pose("home", group, timeout_s=HOME_S)


def _replay(
    station: Station, start: Start, path: Path, seed: int, heed: Callable[[], None]
) -> dict[str, Any]:
    """Play an episode on the table that it was recorded on; what the world says of it."""
    _home(station)
    with WorldClient(station.station) as world:
        world.call("reset", seed=seed)
        program = start("replay", ["episode", "replay", str(path), station.path, "--json"])
        deadline = time.monotonic() + REPLAY_S
        while program.poll() is None:
            heed()
            if time.monotonic() > deadline:
                program.terminate()
                raise ControlPlaneError(f"the replay did not end within {REPLAY_S:g} s")
            time.sleep(POLL_S)
        told = _told(station, program)
        settled = time.monotonic() + SETTLE_S
        success = False
        while not success and time.monotonic() < settled:
            heed()
            success = bool(world.call("status")["success"])
            time.sleep(POLL_S)
    arm = [joint for joint in told["joints"] if joint["unit"] == "rad"]
    return {
        "ok": bool(told["ok"]),
        "file": str(path),
        "rows": told["rows"],
        "success": success,
        "off_command_rms_rad": round(max(joint["command_rms"] for joint in arm), 4),
        "off_recording_rms_rad": round(max(joint["recorded_rms"] for joint in arm), 4),
        "differences": told["differences"],
    }


def _told(station: Station, program: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The JSON that a program left as the last line of its log."""
    words = last_words(runtime_dir(station.station), "replay")
    if program.returncode != 0:
        raise ControlPlaneError(f"the replay failed: {words}")
    told: dict[str, Any] = json.loads(words.partition(": ")[2])
    return told


def _said_of(replayed: dict[str, Any]) -> str:
    """The replay in one line."""
    verdict = "[green]success[/]" if replayed["success"] else "[red]failure[/]"
    return (
        f"replayed: {verdict}, {replayed['rows']} rows, joints off the recording by "
        f"{replayed['off_recording_rms_rad']:.4f} rad (rms of the worst): {replayed['file']}"
    )
