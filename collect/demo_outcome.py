"""What came of a demonstration's episodes, as their files tell it: one row and one number each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from collect.recorder import SavedEpisode
from robot_stack.episode import Episode
from robot_stack.types import Source

__all__ = ["NEEDED_SHARE", "Outcome", "outcome_of", "result_of", "table_of"]

NEEDED_SHARE = 2 / 3  # of episodes that must succeed


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recorded episode, as the file tells it."""

    saved: SavedEpisode
    success: bool
    frames: int
    dropped: int
    repeated: int
    lateness_us: NDArray[np.float64]
    latency_ms: NDArray[np.float64]


def outcome_of(saved: SavedEpisode, success: bool) -> Outcome:
    """Count what the file holds."""
    with Episode.open(saved.path) as episode:
        frames = dropped = repeated = 0
        for camera in episode.cameras:
            seq = episode.frame_seq(camera)
            seq = seq[seq >= 0]
            held = len(np.unique(seq))
            frames += held
            dropped += int(seq[-1] - seq[0]) + 1 - held if held else 0
            repeated += len(seq) - held
        lateness, latency = [], []
        for robot in episode.robots:
            log = episode.log(robot)
            lateness.append(log["lateness_ns"] / 1e3)
            follows = (log["source"] == Source.DEMO) & (log["command_t_ns"] > 0)
            fresh = np.diff(log["command_seq"], prepend=-1) > 0
            answered = log[follows & fresh]
            latency.append((answered["sent_t_ns"] - answered["command_t_ns"]) / 1e6)
    return Outcome(
        saved,
        success,
        frames,
        dropped,
        repeated,
        np.concatenate(lateness),
        np.concatenate(latency),
    )


def _percentiles(values: NDArray[np.float64], digits: int) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits)}


def result_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of them in one JSON object; ``ok`` when enough succeeded and no frame was dropped."""
    successes = sum(outcome.success for outcome in outcomes)
    dropped = sum(outcome.dropped for outcome in outcomes)
    return {
        "ok": successes >= NEEDED_SHARE * len(outcomes) and dropped == 0,
        "episodes": len(outcomes),
        "successes": successes,
        "dropped_frames": dropped,
        "repeated_rows": sum(outcome.repeated for outcome in outcomes),
        "loop_lateness_us": _percentiles(np.concatenate([o.lateness_us for o in outcomes]), 1),
        "teleop_latency_ms": _percentiles(np.concatenate([o.latency_ms for o in outcomes]), 2),
        "files": [str(outcome.saved.path) for outcome in outcomes],
    }


def table_of(outcomes: Sequence[Outcome], title: str) -> Table:
    """One row an episode."""
    table = Table(
        title=title,
        caption="lateness of the arms' loops, operator to robot: p50 / p99",
    )
    for heading in ("episode", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "s", "frames", "dropped", "late us", "answer ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        late, latency = _percentiles(outcome.lateness_us, 0), _percentiles(outcome.latency_ms, 1)
        table.add_row(
            outcome.saved.path.stem,
            "[green]success" if outcome.success else "[red]failure",
            str(outcome.saved.rows),
            f"{outcome.saved.seconds:.1f}",
            str(outcome.frames),
            str(outcome.dropped),
            f"{late['p50']:.0f} / {late['p99']:.0f}",
            f"{latency['p50']:.1f} / {latency['p99']:.1f}",
        )
    return table
