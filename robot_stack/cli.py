"""The ``robot-stack`` command: one table of subcommands, each module imported only when it runs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from robot_stack import __version__
from robot_stack.errors import RobotStackError

__all__ = ["SUBCOMMANDS", "LazyParser", "build_parser", "main"]

# name -> (module that offers add_arguments(parser) and run(args), help in one line). A module of
# several subcommands finds its name in parser.get_default("command") and args.command.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("server.control.supervisor", "start a station: arms, cameras and control plane"),
    "status": ("server.control.commands", "what every process of a station is doing"),
    "arm": ("server.control.commands", "let the lease holder of a group move its robots"),
    "disarm": ("server.control.commands", "accept no commands; hold position under torque"),
    "home": ("server.control.commands", "move a group to its home pose"),
    "sleep": ("server.control.commands", "move a group to its sleep pose"),
    "stop": ("server.control.stop_command", "stop a group now; latches until reset"),
    "reset": ("server.control.commands", "clear a latched stop or fault"),
    "shutdown": ("server.control.commands", "lower the arms and end a station"),
    "teleop": ("collect.teleop", "followers follow what an operator moves"),
    "run": ("collect.run_policy", "a hosted policy drives the robots"),
    "record": ("collect.record", "record episodes while somebody teleoperates"),
    "episode": ("collect.episode_tools", "info, check, view, replay, relabel, trash, recover"),
    "dataset": ("collect.dataset.dataset_command", "import, info, check, export"),
    "train": ("collect.train", "learn a policy from recorded episodes"),
    "policy": ("server.policy.commands", "serve policies to robots; keys, health, reload"),
    "preview": ("server.console.preview", "live cameras in a browser page"),
    "stop-device": ("server.control.stop_process", "listen to a stop button, pedal or key"),
    "identify": ("hardware.aloha.identify", "find out which port is which arm and camera"),
    "calibrate": ("hardware.aloha.calibrate", "measure a rig's grippers and joint offsets"),
    "gello": ("hardware.teleop.gello_calibrate", "measure a GELLO leader's signs and offsets"),
    "virtual": ("server.control.virtual", "the world behind a virtual station; inject faults"),
    "crowd": ("collect.crowd.commands", "the public site: kiosk, leaderboard, review desk"),
    "eval": ("collect.evaluation.command", "score a policy in a world, over many seeds"),
    "demo": ("collect.demo", "virtual station, scripted operator, three recorded episodes"),
    "doctor": ("robot_stack.doctor", "what is wrong with this machine and how to mend it"),
    "bench": ("benchmarks", "measure this installation"),
}

EPILOG = """examples:
  robot-stack demo                                  a whole virtual station, nothing to plug in
  robot-stack virtual configs/aloha_virtual.yaml    the hardware, where it is a virtual one
  robot-stack serve configs/aloha_virtual.yaml      in another terminal: start the station
  robot-stack teleop configs/aloha_virtual.yaml     in another: move the leaders
  robot-stack record configs/aloha_virtual.yaml     in another: keep what happens
  robot-stack stop STATION                          stop, from anywhere

`robot-stack COMMAND --help` explains one command.
"""


class LazyParser(argparse.ArgumentParser):
    """A parser whose arguments are added by ``load(parser)`` when it is first used."""

    def __init__(
        self, *args: Any, load: Callable[[argparse.ArgumentParser], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self._load: Callable[[argparse.ArgumentParser], None] | None = load

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; the arguments are added first."""
        if self._load is not None:
            load, self._load = self._load, None
            load(self)
        return super().parse_known_args(args, namespace)


class _TopParser(argparse.ArgumentParser):
    """The ``robot-stack`` parser: an unknown command is answered with the nearest one."""

    def error(self, message: str) -> NoReturn:
        match = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if match:
            close = difflib.get_close_matches(match[1], SUBCOMMANDS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            message = f"no command is called {match[1]!r}{hint} See `robot-stack --help`"
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; imports no subcommand."""
    parser = _TopParser(
        prog="robot-stack",
        description="The stack beside the robot: control, teleoperation, recording.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"robot-stack {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=LazyParser
    )
    for name, (module, text) in SUBCOMMANDS.items():
        subparser = commands.add_parser(
            name, help=text, description=text, load=_loader(name, module)
        )
        subparser.set_defaults(command=name)
    return parser


def _loader(name: str, module: str) -> Callable[[argparse.ArgumentParser], None]:
    def load(parser: argparse.ArgumentParser) -> None:
        target = importlib.import_module(module)
        target.add_arguments(parser)
        parser.set_defaults(command=name, run=target.run)

    return load


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit status (1 for a RobotStackError, 2 for wrong usage)."""
    try:
        args = build_parser().parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as in `robot-stack status | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except RobotStackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        from robot_stack.registry import missing_dependency

        missing = missing_dependency("this command", error)
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
