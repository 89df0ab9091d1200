"""What a kiosk shows of its station: the robot's part in what goes on, and nothing of anybody.

    {"station": "cafe", "online": true, "closed": false, "phase": "playing", "running": true,
     "kind": "task", "step": null, "tutorial": {"step": "touch", "done": ["home", "squeeze"]},
     "elapsed_s": 12.3, "seconds": 120, "warning": {"level": 1, "arm": "left"},
     "leaders_resting": false, "fault": false, "taken": true, "waiting": 2, "called": false}

`running` is whether the site waits for a play to end; `phase`, `step`, `elapsed_s` are the agent's.
`elapsed_s` counts from when the robot began to follow, None before: the countdown begins then.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy.orm import Session

from collect.crowd import queue
from collect.crowd.leases import holder, online, running
from collect.crowd.tables import Station, Task, utc_now

__all__ = ["view"]

SIDES = ("left", "right")


def view(tx: Session, station_id: str, now: dt.datetime | None = None) -> dict[str, Any] | None:
    """The station as its kiosk shows it; None when it is gone."""
    now = now or utc_now()
    station = tx.get(Station, station_id)
    if station is None:
        return None
    there = online(station, now)
    told = station.state if there else {}
    play = running(tx, station)
    task = None if play is None or play.task_id is None else tx.get(Task, play.task_id)
    at_it = play is not None and told.get("play") == play.id
    tutorial = told.get("tutorial") or {}
    if play is None or tutorial.get("play") != play.id:
        tutorial = {}
    warned = told.get("warning") or {}
    return {
        "station": station.name,
        "online": there,
        "closed": station.closed,
        "phase": told.get("phase", "idle") if there else "offline",
        "running": play is not None,
        "kind": None if play is None else play.kind,
        "step": told.get("step") if at_it else None,
        "tutorial": {"step": tutorial.get("step"), "done": tutorial.get("done", [])},
        "elapsed_s": told.get("elapsed_s") if at_it else None,
        "seconds": (told.get("seconds") if at_it else None) or (task.seconds if task else None),
        "warning": {"level": warned.get("level", 0), "arm": _side(warned.get("between", ""))},
        "leaders_resting": bool(told.get("leaders_resting")),
        "fault": told.get("phase") == "fault",
        "taken": holder(tx, station, now) is not None,
        "waiting": queue.length(tx, station),
        "called": queue.called(tx, station, now) is not None,
    }


def _side(robot: str) -> str | None:
    return next((side for side in SIDES if side in robot), None)
