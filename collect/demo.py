"""`robot-stack demo`: the main job on virtual hardware, from an empty machine to saved episodes.

Starts the world, the station and teleoperation as programs of their own; a scripted operator moves
the virtual leader arms by hand, and the recorder keeps what happens. Then the policy that comes
with the project, trained from such episodes, does the same by itself. Nothing on the way is
shortened: leader bus, teleoperation, control server, safety filter, follower bus, physics.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from collect import demo_policy
from collect.dataset.film_strip import film_strip
from collect.demo_outcome import Outcome, outcome_of, result_of, table_of
from collect.demo_programs import Ending, Start, announced, last_words, programs, runtime
from collect.session import RecordingSession
from hardware.worlds.control import WorldClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError
from robot_stack.shared_memory import runtime_dir

__all__ = ["add_arguments", "run"]

STATION = Path(__file__).parents[1] / "configs" / "aloha_virtual.yaml"
EPISODE_S = 60.0
POLL_S = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The whole stack on virtual hardware. aloha: starts a virtual ALOHA station, lets a "
        "scripted operator transfer a cube by moving the leader arms, records each transfer, lets "
        "the policy that comes with the project do one by itself, and prints one table. franka: "
        "the same with a virtual FR3 that is taught to pick and place by SpaceMouse and GELLO in "
        "turns, and repeats an episode. Leaves the episodes and one picture."
    )
    parser.epilog = (
        "examples:\n  robot-stack demo --episodes 3 --directory episodes\n  robot-stack demo franka"
    )
    parser.add_argument(
        "robot", nargs="?", choices=("aloha", "franka"), default="aloha", help="default: aloha"
    )
    parser.add_argument("--episodes", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--directory", type=Path, default=Path("episodes"), help="where they go")
    parser.add_argument("--station", type=Path, help="another virtual station")
    parser.add_argument("--seed", type=int, default=0, help="of the cube's first place")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.robot == "franka":
        from collect import demo_franka

        return demo_franka.run(args)
    console = Console(stderr=args.json)
    ending = Ending()
    for ender in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ender, ending)  # what was started is ended first
    station = load_station(args.station or STATION)
    if station.world is None:
        raise ControlPlaneError(f"{station.path} is not a virtual station: it has no `world`")
    with (
        runtime() as environment,
        announced(console, "starting the station", args.episodes) as (say, advance),
    ):
        outcomes = []
        with programs(station, environment, say) as start:
            with RecordingSession(station, directory=args.directory, operator="script") as session:
                for number in range(args.episodes):
                    title = f"episode {number + 1}"
                    say(f"{title}: start ritual")
                    seed = args.seed + number
                    outcomes.append(_episode(session, start, seed, title, say, ending.heed))
                    advance()
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
    result = result_of(outcomes) | {"policy_rollout": rollout}
    result["ok"] = result["ok"] and rollout["success"]
    if not args.json:
        console.print(table_of(outcomes, "cube transfer, teleoperated on virtual hardware"))
        console.print(_said_of(rollout), soft_wrap=True)
        console.print(f"episodes: {args.directory}, picture: {picture}", soft_wrap=True)
        first = outcomes[0].saved.path
        console.print(f"look closer with `robot-stack episode view {first}`", soft_wrap=True)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


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
                raise ControlPlaneError(f"teleoperation ended: {last_words(logs, 'teleop')}")
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
    return outcome_of(saved, success)


def _alive(process: subprocess.Popen[bytes], station: Station, ending: Ending) -> None:
    ending.heed()
    if process.poll() is not None:
        words = last_words(runtime_dir(station.station), "policy")
        raise ControlPlaneError(f"the policy server ended: {words}")


# -- what it says --------------------------------------------------------------------------------


def _said_of(rollout: dict[str, Any]) -> str:
    """The policy's rollout in one line."""
    verdict = "[green]success[/]" if rollout["success"] else "[red]failure[/]"
    latency = rollout["chunk_latency_ms"] or {"p50": math.nan, "p99": math.nan}
    return (
        f"the shipped policy by itself: {verdict} (try {rollout['tries']}), "
        f"{rollout['chunks']} chunks, from observation to motion "
        f"{latency['p50']:.0f} / {latency['p99']:.0f} ms: {rollout['file']}"
    )
