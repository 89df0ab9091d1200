"""`robot-stack dataset import`: public data sets become episodes of ours."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from collect.dataset.pusht import import_pusht
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a public data set into episodes. `pusht` reads the human demonstrations of Push-T "
        "(Chi et al. 2023): pusht_cchi_v7_replay.zarr out of "
        "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip, or an HDF5 file with "
        "the same arrays. The episodes have the robot `agent` (x, y in pixels), the block's pose "
        "and nine keypoints as env_state, and with --images the camera `image`."
    )
    parser.epilog = """examples:
  robot-stack dataset import pusht pusht/pusht_cchi_v7_replay.zarr --to data/pusht
  robot-stack dataset import pusht pusht_human_206.hdf5 --to data/pusht_images --images
  robot-stack train --episodes data/pusht --config configs/train/pusht_state_mlp.yaml \\
      --out runs/pusht
"""
    parser.add_argument("dataset", choices=["pusht"], help="which data set SOURCE is")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="zarr directory or HDF5 file")
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True, help="an empty or new directory"
    )
    parser.add_argument("--images", action="store_true", help="with the images (700 MB for Push-T)")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N episodes")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.limit is not None and args.limit < 1:
        raise ConfigError("--limit must be at least 1")
    started_s = time.monotonic()
    columns = (
        TextColumn("importing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=args.json) as bar:
        row = bar.add_task("import", total=None)
        written = import_pusht(
            args.source,
            args.to,
            images=args.images,
            limit=args.limit,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
    report = {
        "ok": True,
        "dataset": args.dataset,
        "episodes": len(written),
        "directory": str(args.to),
        "megabytes": sum(path.stat().st_size for path in written) / 1e6,
        "seconds": time.monotonic() - started_s,
    }
    if not args.json:
        print(f"{len(written)} episodes in {args.to}, {report['megabytes']:.0f} MB")
    print(json.dumps(report))
    return 0
