"""`robot-stack episode TOOL`: one table of tools, each module imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from robot_stack.cli import LazyParser

__all__ = ["TOOLS", "add_arguments", "run"]

# name -> (module that offers add_arguments(parser) and run(args), help in one line)
TOOLS: dict[str, tuple[str, str]] = {
    "info": ("collect.dataset.info", "what episodes hold: label, length, robots, cameras"),
    "check": ("collect.dataset.checks", "whether episodes are whole and consistent"),
    "view": ("collect.dataset.view", "an mp4 of all cameras, and plots of joints and timing"),
    "replay": ("collect.dataset.replay_command", "send an episode's commands to a station again"),
    "relabel": ("collect.dataset.relabel", "success, failure, task, notes"),
    "trash": ("collect.dataset.trash_command", "put episodes away, look there, bring them back"),
    "recover": ("collect.dataset.recover", "save what a killed recorder left"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Look at, check, label, replay and put away recorded episodes."
    parser.epilog = """examples:
  robot-stack episode info episodes
  robot-stack episode view episodes/episode_0.hdf5
  robot-stack episode replay episodes/episode_0.hdf5 configs/aloha_virtual.yaml --speed 0.5

`robot-stack episode TOOL --help` explains one tool.
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
