"""What an export says of itself: the columns of its manifest, and its datasheet.

The datasheet's questions are those of Gebru et al., "Datasheets for Datasets" (arXiv 1803.09010).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.export_select import REASONS
from collect.crowd.tables import Task, TaskText

__all__ = ["COLUMNS", "FORMAT", "README", "datasheet", "manifest_of", "ordered"]

FORMAT = "robot-stack crowd export"
README = "README.md"
COLUMNS = {
    "episodes": {
        "file": "the recording, HDF5 in the format of robot-stack's docs/data-format.md",
        "sha256": "of that file",
        "bytes": "of that file",
        "uuid": "of the episode, in this export only; also the metadata's",
        "contributor": "who drove, in this export only; equal for episodes of one person",
        "station": "which robot, in this export only",
        "task": "a key of `tasks`; null in free play and in the tutorial",
        "kind": "tutorial, task or free",
        "rows": "control steps",
        "seconds": "how long the robot was driven",
        "ended_by": "button, rest (of the leaders), time, lost (contact), staff",
        "claimed": "whether the participant said that it worked; null: not asked or not answered",
        "checked": "whether the station's own check saw a success; null: there is none",
        "decision": "of reviewers: confirm, reverse or unclear; null: not reviewed",
        "quality": "0 to 3 by RoboCrowd's rules, by reviewers; null: not reviewed",
        "likert": "answers of 1 to 5: intuitive, fun, did what I wanted; null: not answered",
        "metrics": "seconds, path_m, jerk (m/s^3, rms), idle_fraction, collisions, dropped_frames",
        "consent": "the version that was agreed to; its words are in consent/",
        "labels": "Parquet, one line a row of the episode",
        "labels_sha256": "of that file",
        "labelled_rows": "how many rows have a label",
    },
    "labels": {
        "row": "int32, from 0",
        "t_ns": "int64, as /t_ns of the episode",
        "label": "play, tutorial, task, or task:<subtask>; empty where nobody has said",
        "quality": "int8, 0 to 3; -1 where nobody has said",
    },
    "quality": {
        "0": "play: not at the task",
        "1": "tutorial with retries; task with more than four retries of a subtask, the scene "
        "altered, or the wrong arm",
        "2": "smooth tutorial; task with up to four retries of a subtask or slight errors",
        "3": "task done smoothly, with two retries at most",
    },
}


def datasheet(manifest: dict[str, Any]) -> str:
    """README.md of an export."""
    counts = manifest["counts"]
    terms = manifest["terms"]
    hours = counts["seconds"] / 3600.0
    tasks = "\n".join(
        f"| {name} | {task['difficulty']} | {counts['by_task'].get(name, 0)} |"
        for name, task in manifest["tasks"].items()
    )
    others = "\n".join(
        f"| {name} | | {count} |"
        for name, count in sorted(counts["by_task"].items())
        if name not in manifest["tasks"]
    )
    rows = "\n".join(part for part in (tasks, others) if part)
    left = "\n".join(f"- {count}: {REASONS[name]}" for name, count in manifest["left_out"].items())
    asked = ["consent to `" + str(terms["scope"]) + "`"]
    if terms["min_quality"] is not None:
        asked.append(f"quality {terms['min_quality']} or more")
    if terms["since"] is not None:
        asked.append(f"played on or after {str(terms['since'])[:10]}")
    return f"""# Robot demonstrations by the public

{counts["episodes"]} episodes by {counts["contributors"]} contributors, {hours:.2f} hours, made
{manifest["created"]} with `robot-stack crowd export` ({", ".join(asked)}).

## What it is

People of the public drove a bimanual robot at a kiosk, after a tutorial of a minute, and agreed
beforehand to what is recorded and what for: their words are in `consent/`. Each episode is a
recording of joints and cameras at the control rate; there is no sound.

| task or kind | difficulty | episodes |
|---|---|---|
{rows}

## What is in it

- `manifest.json`: an entry an episode, with hashes; `schema` explains every column.
- `episodes/`: HDF5, readable with h5py and by ALOHA's own scripts.
- `labels/`: Parquet, one line a row: what reviewers say it is and of what quality.
- `consent/`: what contributors have read.

Success is said by three: the participant (`claimed`), the station where it can see it (`checked`),
and reviewers (`decision`). They may differ; reviewers have the last word where they have one.

## Who is in it

Nobody by name. A contributor is a random code which is another one in every export; so are the ids
of episodes, stations and boots. No card and no nickname is here. Each recording says when it was
made, and hands may be seen when they reach in. Don't try to find out who they are.

## What was left out

{left or "- nothing"}

## Consent that is taken back

Contributors may take consent back at any time; exports that are made later lack their episodes. If
you publish this one further, make it anew from time to time, and replace older ones.
"""


def manifest_of(
    tx: Session,
    terms: dict[str, Any],
    entries: Iterable[dict[str, Any]],
    left_out: dict[str, int],
) -> dict[str, Any]:
    """manifest.json of an export, in an order that says nothing: that of the new ids."""
    episodes = sorted(entries, key=lambda entry: str(entry["uuid"]))
    tasks: dict[str, dict[str, Any]] = {
        task.id: {
            "difficulty": task.difficulty,
            "seconds": task.seconds,
            "par_s": task.par_s,
            "subtasks": task.subtasks,
            "titles": {},
        }
        for task in tx.scalars(select(Task).order_by(Task.id))
        if task.id in {entry["task"] for entry in episodes}
    }
    for text in tx.scalars(select(TaskText)):
        if text.task_id in tasks:
            tasks[text.task_id]["titles"][text.language] = text.title
    return {
        "format": FORMAT,
        "format_version": 1,
        "created": dt.datetime.now(dt.UTC).date().isoformat(),
        "terms": terms,
        "counts": {
            "episodes": len(episodes),
            "contributors": len({entry["contributor"] for entry in episodes}),
            "rows": sum(entry["rows"] for entry in episodes),
            "seconds": round(sum(entry["seconds"] or 0.0 for entry in episodes), 3),
            "bytes": sum(entry["bytes"] for entry in episodes),
            "by_task": dict(Counter(entry["task"] or entry["kind"] for entry in episodes)),
            "by_quality": dict(Counter(str(entry["quality"]) for entry in episodes)),
        },
        "left_out": left_out,
        "consent": dict(Counter(entry["consent"] for entry in episodes)),
        "schema": COLUMNS,
        "tasks": tasks,
        "episodes": episodes,
    }


def ordered(reasons: Counter[str]) -> dict[str, int]:
    """Counts of reasons, by name, without zeros."""
    return {name: count for name, count in sorted(reasons.items()) if count}
