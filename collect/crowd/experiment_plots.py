"""Pictures of the incentive report: every participant a dot, each arm's mean with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display beside a site

import matplotlib.pyplot as plt
import numpy as np

from collect.crowd.experiment_report import OUTCOMES, Person

__all__ = ["write_plots"]

# Told apart without colour, too: by place, name and mark.
LOOKS = {"material": ("#8a5a00", "s"), "intrinsic": ("#0a5a4d", "o"), "social": ("#3b4cc0", "^")}
LABELS = {
    "episodes": "confirmed episodes a participant",
    "quality": "mean quality (0-3) of reviewed episodes",
}


def write_plots(people: Sequence[Person], report: dict[str, Any], folder: Path) -> list[Path]:
    """``episodes`` and ``quality`` as PNG and SVG in ``folder``; their paths."""
    written = []
    for outcome in OUTCOMES:
        figure, axes = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
        draw = np.random.default_rng(0)  # where dots stand beside each other, the same each time
        for place, (name, arm) in enumerate(report["arms"].items()):
            colour, mark = LOOKS[name]
            values = np.array(
                [
                    value
                    for person in people
                    if person.arm == name and (value := getattr(person, outcome)) is not None
                ],
                np.float64,
            )
            aside = place + draw.uniform(-0.22, 0.22, len(values))
            axes.scatter(aside, values, s=16, marker=mark, color=colour, alpha=0.35, linewidth=0)
            estimate = arm[outcome]
            if estimate["mean"] is not None:
                axes.plot([place - 0.3, place + 0.3], [estimate["mean"]] * 2, color=colour, lw=2.5)
            if estimate["ci95"] is not None:
                axes.plot([place, place], estimate["ci95"], color=colour, lw=2.5)
        axes.set_xticks(
            range(len(report["arms"])),
            [
                f"{name}\nn = {arm['participants'] if outcome == 'episodes' else known}"
                for name, arm in report["arms"].items()
                for known in (arm["quality"]["known"],)
            ],
        )
        axes.set_xlim(-0.6, max(len(report["arms"]), 1) - 0.4)
        axes.set_ylim(bottom=-0.1 if outcome == "quality" else None)
        axes.set_ylabel(LABELS[outcome])
        axes.set_title("each dot a participant; lines: mean and 95 % interval", fontsize=9)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for suffix in (".png", ".svg"):
            path = folder / f"{outcome}{suffix}"
            figure.savefig(path, dpi=140)
            written.append(path)
        plt.close(figure)
    return written
