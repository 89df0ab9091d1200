"""`robot-stack crowd task`: what there is to do with the robot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from collect.crowd.commands import config_argument, config_of
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.migrate import migrate
from collect.crowd.tables import Clip, Task, TaskText
from collect.crowd.tasks import ClipFile, TaskFile, add_clip, put_task, read_task
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]

EPILOG = """examples:
  robot-stack crowd task add candy.yaml           add it, or change the task of that id
  robot-stack crowd task clip hi-chew demo.mp4 --caption "From the bin to the tray" \\
      --captions en=demo.en.vtt --captions de=demo.de.vtt
  robot-stack crowd task list

a task file (clips are MP4 or WebM beside it, 64 MiB at most, with WebVTT captions):
  id: hi-chew
  difficulty: easy            # easy or hard: 10 or 20 points
  seconds: 120                # when it is ended; 900 at most
  par_s: 40                   # faster earns up to half as much again
  checked: false              # true where the station itself judges success
  subtasks: [pick, place]     # what reviewers may call its parts
  texts:
    en: {title: A chew from the bin, body: Pick one up and put it on the tray.}
    de: {title: Ein Bonbon aus der Kiste, body: Nimm eines und leg es auf das Tablett.}
  clips:
    - {file: demo.mp4, caption: From the bin to the tray, captions: {en: demo.en.vtt}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Tasks of the site, from YAML files, with clips that show how it is done."
    parser.epilog = EPILOG
    parser.add_argument("action", choices=("add", "clip", "list"))
    parser.add_argument("names", nargs="*", metavar="FILE|TASK", help="see the examples")
    parser.add_argument("--caption", help="with clip: what can be seen, in a line")
    parser.add_argument(
        "--captions",
        action="append",
        default=[],
        metavar="LANGUAGE=FILE",
        help="with clip: WebVTT captions, once a language",
    )
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    database = Database(config.database)
    try:
        migrate(database)
        if args.action == "add":
            answer = _add(args, config, database)
        elif args.action == "clip":
            answer = _clip(args, config, database)
        else:
            answer = _list(args, database)
    finally:
        database.close()
    print(json.dumps(answer))
    return 0


def _add(args: argparse.Namespace, config: CrowdConfig, database: Database) -> dict[str, Any]:
    if not args.names:
        raise ConfigError("name a task file: `robot-stack crowd task add FILE.yaml`; see --help")
    tasks = [read_task(Path(name)) for name in args.names]
    for task in tasks:
        _check_languages(task, config)
    added: list[str] = []
    changed: list[str] = []
    for task in tasks:
        with database.begin() as tx:
            new = put_task(tx, task)
            (added if new else changed).append(task.id)
            if new:  # a task that is added again keeps the clips that it has
                for clip in task.clips:
                    add_clip(tx, config.media, task.id, clip)
        if not args.json:
            print(f"{'added' if new else 'changed'} {task.id}")
            if not new and task.clips:
                print("  its clips stay; add others with `robot-stack crowd task clip`")
    return {"ok": True, "added": added, "changed": changed}


def _clip(args: argparse.Namespace, config: CrowdConfig, database: Database) -> dict[str, Any]:
    if len(args.names) != 2 or not args.caption:
        raise ConfigError("say which task, which file and its caption; see --help")
    task_id, file = args.names
    pairs = [pair.partition("=") for pair in args.captions]
    try:
        clip = ClipFile(Path(file), args.caption, {name: Path(path) for name, _, path in pairs})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with database.begin() as tx:
        row = add_clip(tx, config.media, task_id, clip)
    if not args.json:
        print(f"{task_id} has the clip {row.id}")
    return {"ok": True, "task": task_id, "clip": row.id, "file": row.file}


def _list(args: argparse.Namespace, database: Database) -> dict[str, Any]:
    if args.names:
        raise ConfigError("list takes no names")
    with database.read() as tx:
        rows = tx.scalars(select(Task).order_by(Task.position, Task.id)).all()
        clips = dict(tx.execute(select(Clip.task_id, func.count()).group_by(Clip.task_id)).all())
        titles: dict[str, dict[str, str]] = {}
        for text in tx.scalars(select(TaskText)):
            titles.setdefault(text.task_id, {})[text.language] = text.title
    tasks = [
        {
            "id": task.id,
            "difficulty": task.difficulty,
            "seconds": task.seconds,
            "par_s": task.par_s,
            "active": task.active,
            "titles": titles.get(task.id, {}),
            "clips": clips.get(task.id, 0),
        }
        for task in rows
    ]
    if not args.json:
        for task in tasks:
            state = "" if task["active"] else "  (not offered)"
            print(f"{task['id']:24} {task['difficulty']:5} {task['clips']} clips{state}")
    return {"ok": True, "tasks": tasks}


def _check_languages(task: TaskFile, config: CrowdConfig) -> None:
    missing = [name for name in config.languages if name not in task.texts]
    if missing:
        raise ConfigError(
            f"task {task.id} has no text in {', '.join(missing)}; add texts.{missing[0]}"
        )
