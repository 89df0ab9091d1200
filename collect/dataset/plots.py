"""Pictures of an episode's numbers: joints (measured, asked, sent) and timing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display beside a robot

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from robot_stack.episode import Episode
from robot_stack.types import Difference, Source

__all__ = ["plot_joints", "plot_timing"]

SOURCE_COLOURS: dict[Source, str] = {
    Source.NONE: "#9e9e9e",
    Source.DEMO: "#50be78",
    Source.POLICY: "#5a8cfa",
    Source.HUMAN: "#faaa3c",
    Source.RESIDUAL: "#be6ef0",
    Source.SCRIPTED: "#3cc8d2",
    Source.REPLAY: "#dcd25a",
    Source.SUPERVISOR: "#e678aa",
}
MAX_EVENTS = 11
MAX_POINTS = 20_000  # of a line: more than pixels, and keeps long episodes quick to draw
SHORTEST_SPAN = 0.1
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.1,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "savefig.dpi": 110,
}


def _bands(values: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Runs of equal values as (first index, index after the last, value)."""
    edges = np.flatnonzero(np.diff(values.astype(np.int64))) + 1
    starts, ends = [0, *edges], [*edges, len(values)]
    return [(int(a), int(b), int(values[a])) for a, b in zip(starts, ends, strict=True)]


def _shade(axes: Sequence[Any], episode: Episode, seconds: NDArray[np.float64]) -> list[Patch]:
    """Background bands of each row's source and lines for events; returns the legend's patches."""
    step = 1.0 / episode.schema.rate_hz
    used: dict[Source, None] = {}
    for start, end, value in _bands(episode.source):
        source = Source(value)
        used[source] = None
        for axis in axes:
            axis.axvspan(
                seconds[start],
                seconds[end - 1] + step,
                color=SOURCE_COLOURS[source],
                alpha=0.16,
                linewidth=0,
            )
    origin = int(episode.t_ns[0])
    for event in episode.events:
        for axis in axes:
            axis.axvline((event.t_ns - origin) / 1e9, color="#d62728", linewidth=0.8, alpha=0.7)
    return [
        Patch(color=SOURCE_COLOURS[source], alpha=0.35, label=f"source: {source.name.lower()}")
        for source in used
    ]


def _name_events(axis: Any, episode: Episode) -> None:
    """Write the first events beside their lines, each a little lower than the one before."""
    origin = int(episode.t_ns[0])
    for i, event in enumerate(episode.events[:MAX_EVENTS]):
        seconds = (event.t_ns - origin) / 1e9
        right = seconds > 0.7 * axis.get_xlim()[1]
        axis.annotate(
            f"{event.kind}: {event.text}"[:90],
            (seconds, 0.94 - 0.085 * i),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=7.5,
            color="#b01818",
        )


def _title(episode: Episode) -> str:
    said = episode.metadata
    verdict = {True: "success", False: "failure", None: "not labelled"}[said.success]
    task = f" · {said.task}" if said.task else ""
    return f"{episode.path.name}{task} · {verdict} · {len(episode)} rows"


def _thin(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
    step = max(1, len(arrays[0]) // MAX_POINTS)
    return [array[::step] for array in arrays]


def _at_least(axis: Any, span: float) -> None:
    """Widen the y range to ``span``, so that the noise of a joint at rest stays small."""
    low, high = axis.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        axis.set_ylim(middle - span / 2, middle + span / 2)


def _above(axis: Any, columns: int) -> None:
    """The legend above the panel, where it hides no line."""
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=columns,
        fontsize=7,
        frameon=False,
        columnspacing=0.8,
        handlelength=0.9,
        handletextpad=0.4,
        borderpad=0,
    )


def _limit_x(axes: Any, seconds: NDArray[np.float64]) -> None:
    for axis in np.ravel(axes):
        axis.set_xlim(seconds[0], max(seconds[-1], seconds[0] + 0.1))


def _units(episode: Episode) -> list[str]:
    """The unit of each joint in the rows, as the metadata tell; empty where they do not."""
    units = list(episode.metadata.action.get("units", []))
    return units if len(units) == len(episode.schema.joint_names) else [""] * episode.qpos.shape[1]


def plot_joints(episode: Episode, path: Path) -> None:
    """One panel a joint: measured, asked and sent, over who asked. A column a robot."""
    robots = episode.schema.row_robots
    seconds = (episode.t_ns - episode.t_ns[0]) / 1e9
    qpos, asked, sent = episode.qpos, episode.action, episode.action_sent
    units = _units(episode)
    deepest = max(len(robot.joints) for robot in robots)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            deepest,
            len(robots),
            figsize=(7.5 * len(robots), 1.55 * deepest + 1.0),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        column, used = 0, []
        for r, robot in enumerate(robots):
            for j in range(deepest):
                axis = grid[j][r]
                if j >= len(robot.joints):
                    axis.set_axis_off()
                    continue
                used.append(axis)
                t, q, a, s = _thin(seconds, qpos[:, column], asked[:, column], sent[:, column])
                axis.plot(t, a, color="#ff9c43", linewidth=3.2, alpha=0.6, label="asked")
                axis.plot(t, s, color="#2ca02c", linestyle="--", label="sent")
                axis.plot(t, q, color="#1f3b73", label="measured")
                _at_least(axis, SHORTEST_SPAN)
                unit = f" [{units[column]}]" if units[column] else ""
                axis.set_title(f"{robot.name} / {robot.joints[j]}{unit}")
                column += 1
            grid[-1][r].set_xlabel("time [s]")
        _limit_x(used, seconds)
        patches = _shade(used, episode, seconds)
        handles, labels = used[0].get_legend_handles_labels()
        figure.suptitle(_title(episode), x=0.01, ha="left", fontsize=11)
        figure.legend(
            handles=[*handles, *patches],
            labels=[*labels, *(str(patch.get_label()) for patch in patches)],
            loc="outside upper right",
            ncols=8,
            frameon=False,
        )
        figure.savefig(path)
        plt.close(figure)


def plot_timing(episode: Episode, path: Path) -> None:
    """Velocities, loop lateness, guard distance, age of the frames, and why sent is not asked."""
    robots = episode.schema.row_robots
    origin = int(episode.t_ns[0])
    seconds = (episode.t_ns - origin) / 1e9
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(15, 12.5), layout="constrained")
        grid = figure.add_gridspec(5, len(robots), height_ratios=[1.4, 1, 1, 1, 1.2])
        axes: list[Any] = []
        column = 0
        for r, robot in enumerate(robots):
            width = len(robot.joints)
            moving, late = figure.add_subplot(grid[0, r]), figure.add_subplot(grid[1, r])
            t, *velocities = _thin(seconds, *episode.qvel.T[column : column + width])
            for name, velocity in zip(robot.joints, velocities, strict=True):
                moving.plot(t, velocity, label=name, linewidth=0.9)
            moving.set_title(f"{robot.name}: velocity [unit/s]")
            _above(moving, len(robot.joints))
            column += width
            _lateness(late, episode, robot.name, origin)
            axes += [moving, late]
        distance, age = figure.add_subplot(grid[2, :]), figure.add_subplot(grid[3, :])
        reasons = figure.add_subplot(grid[4, :])
        _distance(distance, episode, origin)
        _frame_age(age, episode, seconds)
        _differences(reasons, episode, seconds)
        axes += [distance, age, reasons]
        _limit_x(axes, seconds)
        patches = _shade(axes, episode, seconds)
        _name_events(reasons, episode)
        figure.suptitle(_title(episode), x=0.01, ha="left", fontsize=11)
        figure.legend(handles=patches, loc="outside upper right", ncols=6, frameon=False)
        figure.savefig(path)
        plt.close(figure)


def _lateness(axis: Any, episode: Episode, robot: str, origin: int) -> None:
    log = episode.log(robot)
    axis.set_title(f"{robot}: loop woke up late by [ms]")
    if len(log):
        late_ms = log["lateness_ns"] / 1e6
        t, late = _thin((log["t_ns"] - origin) / 1e9, late_ms)
        axis.plot(t, late, color="#555555", linewidth=0.6)
        p50, p99 = np.percentile(late_ms, [50, 99])
        text = f"p50 {p50 * 1e3:.0f} µs, p99 {p99 * 1e3:.0f} µs, max {late_ms.max():.2f} ms"
        axis.set_title(text, loc="right", fontsize=8)
        axis.set_ylim(bottom=0)


def _distance(axis: Any, episode: Episode, origin: int) -> None:
    axis.set_title("collision guard: nearest distance [m]")
    known = ran = False
    for robot in episode.robots:
        log = episode.log(robot)
        ran = ran or bool(np.isinf(log["distance"]).any())  # NaN: no guard; inf: nothing near
        if len(log) and np.isfinite(log["distance"]).any():
            t, distance = _thin((log["t_ns"] - origin) / 1e9, log["distance"])
            axis.plot(t, distance, label=robot)
            known = True
    if known:
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        _above(axis, len(episode.robots))
    else:
        text = "nothing came within the guard's margins" if ran else "no guard ran"
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="#888888")


def _frame_age(axis: Any, episode: Episode, seconds: NDArray[np.float64]) -> None:
    axis.set_title("age of each row's frame [ms]")
    for camera in episode.cameras:
        taken = episode.frame_t_ns(camera)
        age = np.where(taken >= 0, (episode.t_ns - taken) / 1e6, np.nan)
        t, thin = _thin(seconds, age)
        axis.plot(t, thin, label=camera, linewidth=0.8)
    if episode.cameras:
        axis.set_ylim(bottom=0)
        _above(axis, len(episode.cameras))


def _differences(axis: Any, episode: Episode, seconds: NDArray[np.float64]) -> None:
    axis.set_title("why what was sent is not what was asked; events")
    bits = episode.difference
    names: list[str] = []
    step = 1.0 / episode.schema.rate_hz
    for flag in Difference:
        on = (bits & int(flag)) != 0
        if not on.any():
            continue
        bars = [(seconds[a], (b - a) * step) for a, b, value in _bands(on) if value]
        axis.broken_barh(bars, (len(names) - 0.35, 0.7), color="#8c3b3b")
        names.append(str(flag.name).lower())
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, max(len(names), 4) - 0.4)
    axis.set_xlabel("time [s]")
    if not names:
        axis.text(0.5, 0.5, "nothing", transform=axis.transAxes, ha="center", color="#888888")
