"""`robot-stack crowd ...`: one table of subcommands, each module imported only when it runs.

A row names a module with ``add_arguments(parser)`` and ``run(args) -> int``, as in the table of
`robot_stack.cli`. Commands that need the settings call ``config_argument(parser)`` and
``config_of(args)``.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from collect.crowd.config import CONFIG_VARIABLE, CrowdConfig, load_config
from robot_stack.cli import LazyParser

__all__ = ["SUBCOMMANDS", "add_arguments", "config_argument", "config_of", "run"]

DEFAULT_CONFIG = Path("crowd.yaml")

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "init": ("collect.crowd.init", "write settings and a key file for a new site"),
    "serve": ("collect.crowd.serve", "run the site"),
    "migrate": ("collect.crowd.migrate", "bring the database to this version's tables"),
    "staff": ("collect.crowd.staff_command", "add, list and disable staff; new passwords"),
    "task": ("collect.crowd.task_command", "tasks of the site, from files, with clips"),
    "consent": ("collect.crowd.consent_command", "the text that participants agree to"),
    "report": ("collect.crowd.report_command", "what the incentive arms have brought about"),
    "arms": ("collect.crowd.arms_command", "the incentive experiment's arms and their shares"),
    "export": ("collect.crowd.export_command", "consented recordings with labels, for others"),
    "erase": ("collect.crowd.erase_command", "erase somebody who asks; again after a backup"),
    "retention": ("collect.crowd.retention_command", "forget what is due by the settings"),
    "station": ("collect.crowd.agent_command", "run the agent beside a robot, for the public"),
    "pair": ("collect.crowd.pair", "a one-time code that pairs a station's agent or a kiosk"),
    "demo": ("collect.crowd.demo", "the site with a virtual robot, to try it all"),
}

EPILOG = """examples:
  robot-stack crowd demo --fill                  all of it, with a virtual robot, to try
  robot-stack crowd init --development           settings and key file, for this computer only
  robot-stack crowd staff add ada --role admin   the first of the staff
  robot-stack crowd serve                        run it
  robot-stack crowd pair cafe agent              a code for the agent beside a robot

`robot-stack crowd COMMAND --help` explains one command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The public site: people walk up, sign in, learn in a minute, drive the robot and find "
        "themselves on the leaderboard; staff review; researchers get a consented dataset."
    )
    parser.epilog = EPILOG
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=LazyParser
    )
    for name, (module, text) in SUBCOMMANDS.items():
        subparser = commands.add_parser(
            name, help=text, description=text, load=_loader(name, module)
        )
        subparser.set_defaults(crowd_command=name)


def run(args: argparse.Namespace) -> int:
    return int(args.crowd_run(args))


def config_argument(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``; without it $ROBOT_STACK_CROWD_CONFIG, or crowd.yaml here."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)),
        metavar="FILE",
        help=f"settings of the site (${CONFIG_VARIABLE}, or {DEFAULT_CONFIG})",
    )


def config_of(args: argparse.Namespace) -> CrowdConfig:
    """The settings that ``--config`` names."""
    return load_config(args.config)


def _loader(name: str, module: str) -> Callable[[argparse.ArgumentParser], None]:
    def load(parser: argparse.ArgumentParser) -> None:
        target = importlib.import_module(module)
        target.add_arguments(parser)
        # `run` is the top-level command's; this one is ours.
        parser.set_defaults(crowd_command=name, crowd_run=target.run)

    return load
