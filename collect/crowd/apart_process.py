"""The process of `collect.crowd.apart`: `... JOB EPISODE FOLDER PARENT LIMITS`.

Takes its limits before it opens the file, and ends with its parent process. What it finds goes to
stdout as JSON; what is wrong with the file is in the last line of stderr, with an exit status of
its own.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collect.crowd.apart import IS_DAMAGED, Limits, take
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
    take(Limits(**options), Path(source))
    try:
        with open_untrusted(Path(source)) as episode:
            try:
                said = json.dumps(JOBS[job](episode, Path(folder), least_s), allow_nan=False)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                print(error, file=sys.stderr)
                return 1  # not the file's fault
    except (EpisodeError, ValueError) as error:  # ValueError: numbers that JSON has not
        print(error, file=sys.stderr)
        return IS_DAMAGED
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
