"""The process of `collect.crowd.apart`: `... JOB EPISODE FOLDER PARENT LIMITS`.

Takes its limits before it opens the file, leaves no core (it would have pictures in it), and ends
with its parent process. What it finds goes to stdout as JSON; what is wrong with the file is in the
last line of stderr, with an exit status of its own.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collect.crowd.apart import IS_DAMAGED, Limits
from collect.crowd.review_data import episode_view
from collect.crowd.untrusted import open_untrusted
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError
from robot_stack.processes import end_with

__all__ = ["JOBS", "main"]


def _view(episode: Episode, folder: Path, least_s: float) -> dict[str, Any]:
    return episode_view(episode, least_s)


def _videos(episode: Episode, folder: Path, least_s: float) -> dict[str, Any]:
    from collect.crowd.video_process import make  # takes a second to import

    return make(episode, folder)


JOBS: dict[str, Callable[[Episode, Path, float], dict[str, Any]]] = {
    "view": _view,
    "videos": _videos,
}


def main(arguments: list[str]) -> int:
    """Exit status."""
    job, source, folder, parent, settings = arguments
    options = json.loads(settings)
    least_s = options.pop("least_s")
    if not end_with(int(parent), signal.SIGKILL):
        return 1
    _limit(Limits(**options), Path(source))
    try:
        with open_untrusted(Path(source)) as episode:
            said = json.dumps(JOBS[job](episode, Path(folder), least_s), allow_nan=False)
    except (EpisodeError, ValueError) as error:  # ValueError: numbers that JSON has not
        print(error, file=sys.stderr)
        return IS_DAMAGED
    print(said)
    return 0


def _limit(limits: Limits, source: Path) -> None:
    os.nice(10)
    if limits.idle:
        os.nice(9)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    cpu_s = limits.cpu_s + int(limits.cpu_s_per_mib * source.stat().st_size / (1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.written, limits.written))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # SIGXCPU first, then SIGKILL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
