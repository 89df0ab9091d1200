"""``robot-stack bench``: the benchmarks, one module each.

A benchmark offers ``add_arguments(parser)`` and ``run(args) -> int``, prints what it measured in
words and one JSON object as its last line (``--json`` leaves only that line), and returns 1 when
a bar that it states is missed. The first line of its docstring is its line in the list.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path

from robot_stack.cli import LazyParser

__all__ = ["add_arguments", "benchmarks", "run"]


def benchmarks() -> dict[str, str]:
    """Name and one-line description of each benchmark, read without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if {"add_arguments", "run"} <= functions:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _add(name: str, parser: argparse.ArgumentParser) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    module.add_arguments(parser)
    parser.set_defaults(run_benchmark=module.run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure this installation. Without a name: list the benchmarks."
    parser.epilog = "example:\n  robot-stack bench loop --seconds 20 --load"
    choices = parser.add_subparsers(title="benchmarks", metavar="NAME", parser_class=LazyParser)
    for name, text in benchmarks().items():
        choices.add_parser(
            name, help=text, description=text, load=lambda p, name=name: _add(name, p)
        )


def run(args: argparse.Namespace) -> int:
    if "run_benchmark" in args:
        return int(args.run_benchmark(args))
    for name, text in benchmarks().items():
        print(f"{name:12} {text}")
    return 0
