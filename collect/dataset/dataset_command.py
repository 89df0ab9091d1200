"""`robot-stack dataset TOOL`: one table of tools, each module imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from robot_stack.cli import LazyParser

__all__ = ["TOOLS", "add_arguments", "run"]

# name -> (module that offers add_arguments(parser) and run(args), help in one line)
TOOLS: dict[str, tuple[str, str]] = {
    "import": ("collect.dataset.import_command", "public data sets become episodes"),
    "info": ("collect.dataset.dataset_info", "what a directory of episodes holds, in all"),
    "check": ("collect.dataset.dataset_check", "whether episodes are whole and fit each other"),
    "export": ("collect.dataset.export.command", "for ACT, robomimic or LeRobot"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Episodes as a data set: bring some in, sum up, check, hand on."
    parser.epilog = """examples:
  robot-stack dataset import pusht pusht_cchi_v7_replay.zarr --to data/pusht
  robot-stack dataset info data/pusht
  robot-stack dataset check episodes
  robot-stack dataset export lerobot episodes --help

`robot-stack dataset TOOL --help` explains one tool; single episodes: `robot-stack episode`.
"""
    tools = parser.add_subparsers(
        title="tools", metavar="TOOL", required=True, parser_class=LazyParser
    )
    for name, (module, text) in TOOLS.items():
        tools.add_parser(name, help=text, description=text, load=_loader(module))


def _loader(module: str) -> Callable[[argparse.ArgumentParser], None]:
    def load(parser: argparse.ArgumentParser) -> None:
        target = importlib.import_module(module)
        target.add_arguments(parser)
        parser.set_defaults(tool=target.run)

    return load


def run(args: argparse.Namespace) -> int:
    return int(args.tool(args))
