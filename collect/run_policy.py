"""`robot-stack run`: a hosted policy drives a group of a station, with human takeover."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from collect.observation import offered_contract
from collect.policy_episode import PolicyEpisode, world_dimensions
from collect.rollout import PolicyRunner, PolicySource
from collect.session import RecordingSession, recorded_group
from robot_stack.client import StationClient
from robot_stack.config import GroupConfig, Station, load_station
from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError
from robot_stack.policy_client import PolicyClient

if TYPE_CHECKING:
    from robot_stack.openpi_client import OpenpiClient

__all__ = ["add_arguments", "open_policy", "run"]

ASK_S = 0.01  # between two looks at the keyboard
OPENPI = ("openpi://", "ws://", "wss://")

EPILOG = """examples:
  robot-stack policy serve runs/transfer/checkpoints/step_0003000 --bind tcp://127.0.0.1:5600
  robot-stack run --policy tcp://127.0.0.1:5600 --station configs/aloha_virtual.yaml
  robot-stack run --policy openpi://gpu:8000 --contract pi0.json --station configs/aloha.yaml

Take over at any time with `robot-stack teleop STATION --takeover` in another terminal: the
leaders are driven to the followers, move both grippers and you hold the robot (with --device
gamepad, spacemouse, ...: once you hold its switch). End it (Ctrl-C) and press enter here: the
policy goes on from what it then sees. `robot-stack stop` stops all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run a learned policy on a station. The policy is asked for its next chunk of actions "
        "while the last one executes; every chunk is anchored to the capture time of what the "
        "policy saw. Refuses to move when the policy's contract (joints, units, rate, cameras) is "
        "not the station's. Ends with Ctrl-C, after --seconds, or when the virtual world's task is "
        "done; the robots then decelerate and hold."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--policy", required=True, metavar="ENDPOINT", help="tcp://, ipc:// or openpi://")
    add("--station", required=True, metavar="FILE", help="station file (YAML)")
    add("--name", default="", help="which of the server's policies (default: its first)")
    add("--group", default="", help="which robots (default: those that are recorded)")
    add("--decoder", default="receding_horizon", help="how samples become a chunk")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the decoder")
    add(
        "--mode",
        choices=("async", "sync"),
        default="async",
        help="sync: the robot stands still while the policy thinks",
    )
    add("--execute", type=int, metavar="ROWS", help="of each chunk (default: the policy's)")
    add("--seconds", type=float, metavar="S", help="end after S seconds")
    add(
        "--start",
        choices=("policy", "home", "here"),
        default="policy",
        help="begin where the demonstrations did (by way of home), at home, or here",
    )
    add("--record", type=Path, metavar="DIR", help="record an episode there")
    add("--contract", type=Path, metavar="FILE", help="of an openpi server's policy (JSON)")
    add("--keys", type=Path, metavar="FILE", help="CURVE keys, of `policy keygen`")
    add(
        "--resume",
        choices=("ask", "always", "never"),
        default="ask",
        help="after a takeover (default: ask for enter)",
    )
    add("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    station = load_station(args.station)
    group = _group(station, args.group)
    if args.record is not None and group != recorded_group(station):
        raise ConfigError(
            f"{station.path} records group {recorded_group(station).name!r}, not {group.name!r}: "
            "set recording.group to what the policy moves"
        )
    ended = False

    def on_signal(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    def say(text: str) -> None:
        console.print(f"run: {text}", highlight=False, soft_wrap=True)

    def resume(done: Callable[[], bool]) -> bool:
        return args.resume == "always" or (args.resume == "ask" and _agreed(say, done))

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(StationClient(station.station))
        policy = open_policy(
            args.policy,
            station,
            group,
            client,
            name=args.name,
            decoder=args.decoder,
            options=_options(args.option),
            keys=args.keys,
            contract=args.contract,
        )
        stack.callback(policy.close)
        recording = None
        if args.record is not None:
            about = {"endpoint": args.policy, "name": policy.contract.name, "decoder": args.decoder}
            recording = stack.enter_context(
                RecordingSession(station, directory=args.record, operator="policy", policy=about)
            )
        runner = PolicyRunner(
            station,
            group,
            client,
            policy,
            mode=args.mode,
            execute=args.execute,
            say=say,
            resume=resume,
        )
        episode = PolicyEpisode(runner, seconds=args.seconds, start=args.start, recording=recording)
        result = episode.run(lambda: ended)
    if not args.json:
        console.print(episode.summary.latency.table())
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _agreed(say: Callable[[str], None], done: Callable[[], bool]) -> bool:
    """Ask the operator to press enter; False without a terminal, or when it is over meanwhile."""
    if not sys.stdin.isatty():
        say("nobody can be asked here whether the policy goes on (see --resume); it ends")
        return False
    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before is no answer
    say("press enter to let the policy go on")
    while not done():
        if select.select([sys.stdin], [], [], ASK_S)[0]:
            return bool(sys.stdin.readline())
    return False


def _read_contract(path: Path) -> PolicyContract:
    """The contract in a JSON file: alone, or in a checkpoint's ``policy.json``."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no contract: {error}") from error
    return PolicyContract.from_json(values.get("contract", values), str(path))


def _group(station: Station, name: str) -> GroupConfig:
    """The group that the policy moves; ConfigError names the groups there are."""
    if not name:
        return recorded_group(station)
    if name not in station.groups:
        known = ", ".join(station.groups)
        raise ConfigError(f"{station.path} has no group {name!r}; it has {known}")
    return station.groups[name]


def _options(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, the values read as JSON where they are JSON."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--option {pair!r} is not KEY=VALUE, such as samples=15")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def open_policy(
    endpoint: str,
    station: Station,
    group: GroupConfig,
    client: StationClient,
    *,
    name: str = "",
    decoder: str = "receding_horizon",
    options: dict[str, Any] | None = None,
    keys: Path | None = None,
    contract: Path | None = None,
) -> PolicySource:
    """A session with a policy; PolicyError when its contract is not what the station offers.

    ``contract`` is a file for openpi servers, which do not say what they take and give.
    """
    policy: PolicyClient | OpenpiClient
    if endpoint.startswith(OPENPI):
        from robot_stack.openpi_client import OpenpiClient

        given = None if contract is None else _read_contract(contract)
        policy = OpenpiClient(endpoint, contract=given, prompt=station.task or None)
    else:
        policy = PolicyClient(endpoint, policy=name, decoder=decoder, options=options, keys=keys)
    try:
        dimensions = world_dimensions(station, client)
        policy.offered = offered_contract(station, group, policy.contract, dimensions)
        policy.open()
    except BaseException:
        policy.close()
        raise
    return policy
