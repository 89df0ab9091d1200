"""Unmodified franky-control, pylibfranka and panda-python against the virtual Franka arm."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.conformance.steps import STEPS
from hardware.franka.fci import Version
from hardware.franka.virtual.process import FrankaProcess

__all__ = ["add_arguments", "run"]

HANG_S = 120.0


@dataclass(frozen=True, slots=True)
class Client:
    """A library, the module that puts it through the steps, and the server version it speaks."""

    name: str
    module: str
    version: Version


CLIENTS = (
    Client("franky", "benchmarks.conformance.franky_client", 10),
    Client("pylibfranka", "benchmarks.conformance.pylibfranka_client", 10),
    Client("panda_python", "benchmarks.conformance.panda_client", 5),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Each library of PyPI, as it is installed, connects to a virtual arm of its own, reads "
        "1,000 states, moves in joints and in space, controls torques for a second, moves and "
        "closes the gripper, violates a limit, and recovers. Fails when one step of one fails."
    )
    parser.epilog = "example:\n  robot-stack bench franka_conformance --client franky"
    parser.add_argument(
        "--client",
        action="append",
        choices=[client.name for client in CLIENTS],
        help="only this one (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def _steps(client: Client) -> dict[str, tuple[bool, str]]:
    """(went well, what was seen) of every step; what a hung library never came to has failed."""
    with FrankaProcess(client.version) as arm:
        try:
            done = subprocess.run(
                [sys.executable, "-m", client.module, arm.address],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=HANG_S,
                check=False,
            )
            output = done.stdout
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode(errors="replace")
    results = dict.fromkeys(STEPS, (False, f"never reached: {output[-300:]}"))
    for line in output.splitlines():
        if line.startswith('{"step"'):
            found = json.loads(line)
            results[found["step"]] = (found["ok"], found["seen"])
    return results


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    results = {}
    for client in CLIENTS:
        if args.client and client.name not in args.client:
            continue
        with console.status(f"{client.name} against server version {client.version}"):
            results[client.name] = _steps(client)
        table = Table("step", "", "what it saw", title=f"{client.name}, version {client.version}")
        for step, (ok, seen) in results[client.name].items():
            table.add_row(step, "ok" if ok else "[red]failed[/red]", seen.splitlines()[0])
        console.print(table)
    verdicts = {
        name: {step: ok for step, (ok, _) in steps.items()} for name, steps in results.items()
    }
    print(json.dumps(verdicts))
    return 0 if all(all(steps.values()) for steps in verdicts.values()) else 1
