"""`robot-stack dataset export`: episodes in the format of another project."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from collect.dataset.export.source import select
from robot_stack.cli import LazyParser

__all__ = ["FORMATS", "add_arguments", "run"]

FORMATS = {
    "act": "a directory for ACT, or with --compress for act-plus-plus",
    "robomimic": "one HDF5 file for robomimic",
    "lerobot": "a LeRobot dataset, v3.0: parquet and mp4",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write recorded episodes in the format of another project. Nothing is overwritten; rows at "
        "either end in which state, action or an image is unknown are left off."
    )
    parser.epilog = """examples:
  robot-stack dataset export act episodes --out act_cube
  robot-stack dataset export robomimic episodes --out cube.hdf5 --scale-actions
  robot-stack dataset export lerobot episodes --out lerobot_cube --only all
"""
    formats = parser.add_subparsers(
        title="formats", metavar="FORMAT", required=True, parser_class=LazyParser
    )
    for name, text in FORMATS.items():
        formats.add_parser(name, help=text, description=text, load=_loader(name))


def _loader(name: str) -> Callable[[argparse.ArgumentParser], None]:
    def load(parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(export_format=name)
        parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="episodes")
        parser.add_argument("--out", type=Path, required=True, help="where to; must not exist")
        parser.add_argument(
            "--only",
            choices=("success", "all"),
            default="success",
            help="episodes labelled a success (default), or all",
        )
        for flags, options in OPTIONS[name].items():
            parser.add_argument(flags, **options)
        parser.add_argument("--json", action="store_true", help="print one JSON object only")

    return load


OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "act": {
        "--compress": {
            "action": "store_true",
            "help": "JPEG images and episodes of their own length, which act-plus-plus reads",
        },
        "--length": {
            "type": int,
            "default": 0,
            "help": "rows of every episode; shorter ones hold their last row (the longest's)",
        },
    },
    "robomimic": {
        "--valid": {"type": float, "default": 0.1, "help": "share in mask/valid (0.1)"},
        "--seed": {"type": int, "default": 0, "help": "which ones they are (0)"},
        "--next-obs": {"action": "store_true", "help": "also write next_obs, for offline RL"},
        "--scale-actions": {
            "action": "store_true",
            "help": "map actions to [-1, 1] by their own range, as robomimic's networks expect",
        },
    },
    "lerobot": {},
}


def run(args: argparse.Namespace) -> int:
    name = args.export_format
    selection = select(args.paths, args.only)
    options = {flag: getattr(args, flag) for flag in map(_dest, OPTIONS[name])}
    module = importlib.import_module(f"collect.dataset.export.{name}")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=args.json,
    ) as progress:
        bar = progress.add_task(f"export {name}", total=selection.rows)
        details = module.export(selection, args.out, lambda: progress.advance(bar), **options)
    result = {
        "format": name,
        "out": str(args.out),
        "episodes": len(selection.sources),
        "rows": selection.rows,
        "left_out": dict(selection.left_out),
        **details,
    }
    if not args.json:
        print(f"{len(selection.sources)} episodes, {selection.rows} rows -> {args.out}")
        for path, reason in selection.left_out.items():
            print(f"left out: {path}: {reason}")
        if details.get("actions_within_1") is False:
            print(
                "actions leave [-1, 1], which robomimic's networks can't reach: "
                "use --scale-actions unless your configuration normalises them"
            )
    print(json.dumps(result))
    return 0


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
