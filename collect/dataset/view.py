"""`robot-stack episode view`: an mp4 of all cameras and two pictures of the numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from collect.dataset.paths import episode_files
from collect.dataset.plots import plot_joints, plot_timing
from collect.dataset.video import write_video
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["add_arguments", "run", "view"]


def view(path: Path, output: Path, *, video: bool = True, plots: bool = True) -> list[Path]:
    """Write ``<name>.mp4``, ``<name>.joints.png`` and ``<name>.timing.png`` into ``output``.

    Returns the files written; an episode without cameras gets no video. EpisodeError when it has
    no rows.
    """
    written = []
    with Episode.open(path) as episode:
        if not len(episode):
            raise EpisodeError(f"{path} has no rows: nothing to see")
        if video and episode.cameras:
            written.append(output / f"{path.stem}.mp4")
            write_video(episode, written[-1])
        if plots and episode.schema.row_robots:
            written += [output / f"{path.stem}.joints.png", output / f"{path.stem}.timing.png"]
            plot_joints(episode, written[-2])
            plot_timing(episode, written[-1])
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make an episode visible: NAME.mp4 (all cameras, H.264, plays in a browser), "
        "NAME.joints.png (measured, asked and sent, over who asked) and NAME.timing.png "
        "(velocities, loop lateness, guard distance, age of frames, why sent is not asked)."
    )
    parser.epilog = """examples:
  robot-stack episode view episodes/episode_0.hdf5
  robot-stack episode view episodes --output /tmp/look --no-video
"""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="episode files or directories")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: beside the episode)"
    )
    parser.add_argument("--no-video", action="store_true", help="only the plots")
    parser.add_argument("--no-plots", action="store_true", help="only the video")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    written = []
    for path in episode_files(args.paths):
        output = args.output or path.parent
        output.mkdir(parents=True, exist_ok=True)
        files = view(path, output, video=not args.no_video, plots=not args.no_plots)
        written += files
        if not args.json:
            for file in files:
                print(file)
    if args.json:
        print(json.dumps({"ok": True, "files": [str(file) for file in written]}))
    return 0
