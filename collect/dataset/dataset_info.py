"""`robot-stack dataset info`: what a directory of episodes holds, in all."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from collect.dataset.info import summarise
from collect.dataset.paths import episode_files
from robot_stack.episode import Episode

__all__ = ["add_arguments", "run", "summary"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sum episodes up: how many and how long, labels, rates, robots, cameras, who moved the "
        "robot, and the range of every column of state, action and env_state. Of several kinds "
        "in one place, each is listed; `robot-stack dataset check` says which episode is which."
    )
    parser.epilog = """examples:
  robot-stack dataset info data/pusht
  robot-stack dataset info episodes --json | jq .action
"""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="directories or episode files")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    found = summary(episode_files(args.paths))
    if not args.json:
        _print(Console(), found)
    print(json.dumps(found))
    return 0


def summary(files: Sequence[Path]) -> dict[str, Any]:
    """All episodes together as plain JSON. ``state``, ``action`` and ``env_state`` map each column
    to its smallest and largest known value."""
    ranges: dict[str, dict[str, tuple[float, float]]] = {"state": {}, "action": {}, "env_state": {}}
    counts: dict[str, Counter[str]] = {
        key: Counter() for key in ("success", "task", "rate_hz", "embodiments", "cameras", "joints")
    }
    sources: Counter[str] = Counter()
    unknown = Counter({"state": 0, "action": 0})
    rows, seconds, megabytes = 0, [], 0.0
    for path in files:
        one = summarise(path)
        rows += one["rows"]
        seconds.append(one["seconds"])
        megabytes += one["megabytes"]
        counts["success"][one["success"]] += 1
        counts["task"][one["task"] or ""] += 1
        counts["rate_hz"][f"{one['rate_hz']:g}"] += 1
        in_rows = [robot for robot in one["robots"].values() if robot["in_rows"]]
        counts["embodiments"][", ".join(str(robot["embodiment"]) for robot in in_rows)] += 1
        cameras = [
            f"{name} {c['width']}x{c['height']}{' and depth' if c['depth'] else ''}"
            for name, c in one["cameras"].items()
        ]
        counts["cameras"][", ".join(cameras) or "none"] += 1
        for source, share in one["sources"].items():
            sources[source] += round(share * one["rows"])
        with Episode.open(path) as episode:
            names = episode.schema.joint_names
            counts["joints"][", ".join(names)] += 1
            for key, values in (("state", episode.qpos), ("action", episode.action)):
                unknown[key] += int(np.isnan(values).any(axis=1).sum())
                _widen(ranges[key], names, values)
            env = episode.env_state
            if env is not None:
                _widen(ranges["env_state"], [f"env/{i}" for i in range(env.shape[1])], env)
    return {
        "ok": True,
        "episodes": len(files),
        "rows": rows,
        "minutes": sum(seconds) / 60,
        "shortest_s": min(seconds),
        "longest_s": max(seconds),
        "megabytes": megabytes,
        **{key: dict(counter) for key, counter in counts.items()},
        "sources": {name: count / max(rows, 1) for name, count in sources.items()},
        "unknown_rows": dict(unknown),
        **ranges,
    }


def _widen(
    ranges: dict[str, tuple[float, float]], names: Sequence[str], values: NDArray[Any]
) -> None:
    for name, column in zip(names, values.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (float(min(low, known.min())), float(max(high, known.max())))


def _print(console: Console, found: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("episodes", f"{found['episodes']}, {found['megabytes']:.0f} MB")
    table.add_row(
        "length",
        f"{found['minutes']:.1f} min, {found['rows']} rows; "
        f"{found['shortest_s']:.1f} to {found['longest_s']:.1f} s each",
    )
    for key, text in (
        ("success", "labels"),
        ("task", "task"),
        ("rate_hz", "rows a second"),
        ("embodiments", "robots"),
        ("cameras", "cameras"),
    ):
        kinds = found[key]
        alone = len(kinds) == 1
        shown = [name or "-" if alone else f"{name or '-'} ({n})" for name, n in kinds.items()]
        table.add_row(text, "; ".join(shown))
    table.add_row("moved by", ", ".join(f"{k} {v:.0%}" for k, v in found["sources"].items()))
    for key in ("state", "action", "env_state"):
        for i, (name, (low, high)) in enumerate(found[key].items()):
            table.add_row(key if i == 0 else "", f"{name:32} {low:10.4f} .. {high:.4f}")
    for key, rows in found["unknown_rows"].items():
        if rows:
            table.add_row("unknown", f"{key} in {rows} rows (NaN)")
    console.print(table, markup=False, highlight=False)
