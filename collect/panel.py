"""The recorder's live panel: what an operator looks at between and during episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

__all__ = ["KEY_HELP", "CameraLine", "RobotLine", "Snapshot", "render"]

KEY_HELP = (
    ("space/enter", "start, stop"),
    ("s", "success"),
    ("f", "failure"),
    ("d", "discard"),
    ("r", "record again"),
    ("q", "quit"),
)
BORDERS = 2
KEY_LINES = 2


@dataclass(frozen=True, slots=True)
class RobotLine:
    """One robot now; NaN where nothing is known. ``trouble`` is a fault or stop in words."""

    name: str
    state: str
    rate_hz: float
    age_ms: float
    late_p50_us: float
    late_p99_us: float
    overruns: int
    trouble: str


@dataclass(frozen=True, slots=True)
class CameraLine:
    """One camera now; ``frames`` are the counts of the episode (``collect.channels``)."""

    name: str
    rate_hz: float
    nominal_hz: float
    age_ms: float
    frames: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the panel shows. ``state`` is ``idle``, ``recording`` or ``saving``."""

    station: str
    task: str
    operator: str
    directory: str
    state: str
    episode: str
    seconds: float
    max_seconds: float
    rows: int
    row_delay_ms: float
    robots: Sequence[RobotLine]
    cameras: Sequence[CameraLine]
    mb_per_s: float
    file_mb: float
    free_gb: float
    floor_gb: float
    backlog: int
    lease: str
    saved: int
    wanted: int | None
    successes: int
    failures: int
    messages: Sequence[tuple[str, str]]  # style, text; oldest first


def _number(value: float, form: str = ".0f") -> str:
    return "-" if not math.isfinite(value) else format(value, form)


def _graded(value: float, text: str, warn: float, bad: float) -> Text:
    """``text``, yellow from ``warn`` on, red from ``bad`` on or when unknown."""
    if not math.isfinite(value) or value >= bad:
        return Text(text, style="bold red")
    return Text(text, style="yellow" if value >= warn else "")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for i, name in enumerate(columns):
        left = i == 0 or name == "state"
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis"
        )
    return table


def _headline(now: Snapshot) -> Text:
    style, mark = {
        "recording": ("bold white on red", " ● RECORDING "),
        "saving": ("bold black on yellow", " … SAVING "),
    }.get(now.state, ("bold white on blue", " ■ IDLE "))
    minutes, seconds = divmod(now.seconds, 60)
    line = Text(no_wrap=True, overflow="ellipsis").append(mark, style=style)
    line.append(f"  {now.episode}", style="bold")
    if now.state != "idle":
        line.append(f"   {int(minutes):02d}:{seconds:04.1f}", style="bold")
        line.append(f" of {now.max_seconds:.0f} s   {now.rows} rows", style="dim")
    wanted = f" of {now.wanted}" if now.wanted is not None else ""
    line.append(f"   saved {now.saved}{wanted}")
    if now.saved:
        line.append(f"  ✓{now.successes}", style="green")
        line.append(f" ✗{now.failures}", style="red")
        line.append(f" ?{now.saved - now.successes - now.failures}", style="dim")
    return line


def _robots(now: Snapshot) -> RenderableType:
    """Figures in a table, troubles below it: in a column they would squeeze all others out."""
    table = _table("robot", "state", "Hz", "age ms", "late p50", "p99 µs", "overruns")
    for robot in now.robots:
        colour = {"armed": "green", "fault": "bold red", "stopped": "bold red"}
        table.add_row(
            robot.name,
            Text(robot.state, style=colour.get(robot.state, "yellow")),
            _number(robot.rate_hz),
            _graded(robot.age_ms, _number(robot.age_ms), 100, 500),
            _number(robot.late_p50_us),
            _graded(robot.late_p99_us, _number(robot.late_p99_us), 2000, 10000),
            str(robot.overruns),
        )
    troubles = (
        Text(f"{robot.name}: {robot.trouble}", "red", no_wrap=True, overflow="ellipsis")
        for robot in _troubled(now)
    )
    return Group(table, *troubles)


def _troubled(now: Snapshot) -> list[RobotLine]:
    return [robot for robot in now.robots if robot.trouble]


def _cameras(now: Snapshot) -> Table:
    counts = ("stored", "repeated", "dropped", "lost", "stale_rows")
    table = _table("camera", "Hz", "age ms", *(name.removesuffix("_rows") for name in counts))
    for camera in now.cameras:
        period_ms = 1000 / camera.nominal_hz
        rate = f"{_number(camera.rate_hz, '.1f')}/{camera.nominal_hz:g}"
        slow = camera.rate_hz < 0.8 * camera.nominal_hz
        cells = []
        for name in counts:
            value = int(camera.frames.get(name, 0))
            bad = value and name in ("lost", "stale_rows")
            cells.append(Text(str(value), style="red" if bad else ""))
        table.add_row(
            camera.name,
            Text(rate, style="yellow" if slow else ""),
            _graded(camera.age_ms, _number(camera.age_ms), 3 * period_ms, 10 * period_ms),
            *cells,
        )
    return table


def _facts(now: Snapshot) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    disk = Text(f"{now.free_gb:.1f} GB free")
    if now.free_gb < 2 * now.floor_gb:
        disk.stylize("bold red")
    disk.append(f", recording ends below {now.floor_gb:g} GB", style="dim")
    if now.state != "idle":
        disk.append(f"   {now.mb_per_s:.1f} MB/s, {now.file_mb:.1f} MB written")
        disk.append(f"   rows {now.row_delay_ms:.0f} ms behind, {now.backlog} images queued")
    facts.add_row("disk", disk)
    facts.add_row("moved by", now.lease)
    return facts


def _keys() -> Table:
    """The keys in one line, or in as many as it takes."""
    keys = Text()
    for i, (key, meaning) in enumerate(KEY_HELP):
        keys.append("  " if i else "")
        keys.append(f" {key} ", style="reverse")
        keys.append(f" {meaning}")
    grid = Table.grid()
    grid.add_row(keys)
    return grid


def render(now: Snapshot, height: int | None = None) -> RenderableType:
    """The whole panel. With ``height`` (lines) it gives up air, then older messages, to fit."""
    blocks: list[RenderableType] = [_headline(now)]
    lines = [1]
    if now.robots:
        blocks.append(_robots(now))
        lines.append(len(now.robots) + 1 + len(_troubled(now)))
    if now.cameras:
        blocks.append(_cameras(now))
        lines.append(len(now.cameras) + 1)
    blocks.append(_facts(now))
    lines.append(4)  # two facts; narrow terminals wrap the first one
    left = None if height is None else height - BORDERS - sum(lines) - KEY_LINES
    messages = now.messages[-max(left, 1) :] if left is not None else now.messages
    airy = left is None or left >= len(messages) + len(blocks) + 1
    blocks.append(
        Group(*(Text(text, style, no_wrap=True, overflow="ellipsis") for style, text in messages))
    )
    parts: list[RenderableType] = []
    for block in [*blocks, _keys()]:
        if parts and airy:
            parts.append(Text())
        parts.append(block)
    title = f"{now.station} · {now.task}" if now.task else now.station
    who = f"operator {now.operator} · " if now.operator else ""
    return Panel(
        Group(*parts),
        title=f"[bold]{title}[/]",
        subtitle=f"[dim]{who}{now.directory}[/]",
        title_align="left",
        subtitle_align="right",
    )
