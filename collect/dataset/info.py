"""`robot-stack episode info`: what episodes hold, one line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from collect.dataset.paths import episode_files, missing_numbers
from robot_stack.episode import Episode
from robot_stack.types import Source

__all__ = ["add_arguments", "run", "summarise"]

VERDICT = {True: "success", False: "failure", None: "unknown"}


def summarise(path: Path) -> dict[str, Any]:
    """One episode as plain JSON: label, length, robots, cameras, shares of the sources, events."""
    with Episode.open(path) as episode:
        said = episode.metadata
        rows = len(episode)
        source, counts = np.unique(episode.source, return_counts=True)
        layouts = episode.schema.cameras
        return {
            "file": str(path),
            "uuid": said.uuid,
            "success": VERDICT[said.success],
            "labeller": said.labeller,
            "failure_tag": said.failure_tag,
            "task": said.task,
            "notes": said.extra.get("notes"),
            "rows": rows,
            "rate_hz": episode.schema.rate_hz,
            "seconds": rows / episode.schema.rate_hz,
            "station": said.station,
            "session": said.session,
            "operator": said.operator,
            "created": said.created,
            "ended": said.ended,
            "encoding": episode.schema.encoding,
            "simulated": episode.schema.sim,
            "robots": {
                robot.name: {
                    "embodiment": said.robots.get(robot.name, {}).get("embodiment"),
                    "joints": len(robot.joints),
                    "in_rows": robot.in_rows,
                }
                for robot in episode.schema.robots
            },
            "cameras": {
                name: {
                    "width": layouts[name].width,
                    "height": layouts[name].height,
                    "depth": layouts[name].depth,
                    **said.frames.get(name, {}),
                }
                for name in episode.cameras
            },
            "sources": {
                Source(int(value)).name.lower(): int(count) / rows
                for value, count in zip(source, counts, strict=True)
            },
            "events": [f"{event.kind}: {event.text}" for event in episode.events],
            "content_hash": said.content_hash,
            "megabytes": path.stat().st_size / 1e6,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What episodes hold: label, length, robots, cameras, who moved the robot. One episode is "
        "shown in full, several in a table."
    )
    parser.epilog = """examples:
  robot-stack episode info episodes                  every episode of a directory
  robot-stack episode info episodes/episode_0.hdf5   one in full
  robot-stack episode info episodes --json | jq '.episodes[].success'
"""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="episode files or directories")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    files = episode_files(args.paths)
    found = [summarise(path) for path in files]
    gaps = {
        str(directory): missing
        for directory in map(Path, args.paths)
        if directory.is_dir() and (missing := missing_numbers(directory))
    }
    if args.json:
        print(json.dumps({"ok": True, "episodes": found, "missing_numbers": gaps}))
        return 0
    console = Console()
    if len(found) == 1:
        _print_one(console, found[0])
    else:
        _print_table(console, found)
    for directory, missing in gaps.items():
        numbers = ", ".join(map(str, missing))
        console.print(f"{directory}: no episode has number {numbers}")
    return 0


def _dropped(cameras: Mapping[str, Mapping[str, Any]]) -> str:
    """Frames that were produced and are not in the file; ``-`` when nobody counted."""
    known = [camera["dropped"] + camera["lost"] for camera in cameras.values() if "lost" in camera]
    return str(sum(known)) if known else "-"


def _print_table(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("file", "label", "task", "length", "rows", "source", "dropped", "MB", "note"):
        right = name in ("length", "rows", "dropped", "MB")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    colours = {"success": "green", "failure": "red", "unknown": "dim"}
    for one in found:
        main = max(one["sources"], key=lambda name: one["sources"][name], default="-")
        note = [] if one["ended"] in ("stopped", None) else [one["ended"]]
        if one["events"]:
            note.append(f"{len(one['events'])} events")
        table.add_row(
            Path(one["file"]).name,
            f"[{colours[one['success']]}]{one['success']}[/]",
            one["task"] or "",
            f"{one['seconds']:.1f} s",
            str(one["rows"]),
            main,
            _dropped(one["cameras"]),
            f"{one['megabytes']:.1f}",
            ", ".join(note),
        )
    console.print(table)
    seconds = sum(one["seconds"] for one in found)
    good = sum(one["success"] == "success" for one in found)
    size = sum(one["megabytes"] for one in found)
    console.print(
        f"{len(found)} episodes, {good} labelled success, {seconds / 60:.1f} min, {size:.0f} MB"
    )


def _print_one(console: Console, one: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    by = f" (by {one['labeller']})" if one["labeller"] else ""
    tag = f", {one['failure_tag']}" if one["failure_tag"] else ""
    lines = [
        ("file", f"{one['file']}, {one['megabytes']:.1f} MB"),
        ("label", f"{one['success']}{tag}{by}"),
        ("task", one["task"] or "-"),
        ("notes", one["notes"]),
        ("length", f"{one['seconds']:.2f} s, {one['rows']} rows at {one['rate_hz']:g} Hz"),
        ("recorded", f"{one['created']} at {one['station'] or '-'}"),
        ("ended", one["ended"] or "never: run `robot-stack episode check`"),
        ("session", one["session"]),
        ("operator", one["operator"]),
        ("source", ", ".join(f"{k} {v:.0%}" for k, v in one["sources"].items())),
    ]
    for name, robot in one["robots"].items():
        where = "in rows and log" if robot["in_rows"] else "in the log only"
        what = f"{robot['embodiment'] or 'unknown'}, {robot['joints']} joints, {where}"
        lines.append((name, what))
    for name, camera in one["cameras"].items():
        depth = " and depth" if camera["depth"] else ""
        counts = {k: v for k, v in camera.items() if k not in ("width", "height", "depth")}
        text = ", ".join(f"{k} {v}" for k, v in counts.items())
        size = f"{camera['width']}x{camera['height']} {one['encoding']}{depth}"
        lines.append((name, f"{size}; {text}" if text else size))
    lines += [("event", event) for event in one["events"]]
    lines += [("uuid", one["uuid"]), ("content", one["content_hash"])]
    for name, value in lines:
        if value:
            table.add_row(name, str(value))
    console.print(table, markup=False, highlight=False)
