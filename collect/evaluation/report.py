"""What the scores say: intervals, paired tests, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display beside a robot

import matplotlib.pyplot as plt
import numpy as np
from rich import box
from rich.table import Table

from collect.evaluation.results import Result
from collect.evaluation.statistics import bootstrap, paired_p, wilson

__all__ = ["BASELINE", "plot", "summarise", "table"]

BASELINE = "receding_horizon"

Results = Mapping[str, Mapping[int, Result]]


def summarise(results: Results) -> dict[str, Any]:
    """Plain JSON: by decoder the mean of the episodes' highest rewards with its interval, the
    success rate with its own, and lengths; against receding horizon, over the seeds that both have,
    the mean difference and its interval and p value."""
    found: dict[str, Any] = {}
    for decoder, episodes in results.items():
        score = bootstrap([result.max_reward for result in episodes.values()])
        successes = sum(result.success for result in episodes.values())
        success = wilson(successes, len(episodes))
        steps = sum(result.steps for result in episodes.values())
        found[decoder] = {
            "mean_max_reward": score.mean,
            "ci80": [score.low, score.high],
            "success_rate": success.mean,
            "success_ci80": [success.low, success.high],
            "episodes": len(episodes),
            "mean_steps": steps / len(episodes),
        }
    compared: dict[str, float] = {}
    differences: dict[str, Any] = {}
    baseline = results.get(BASELINE, {})
    for decoder, episodes in results.items():
        seeds = sorted(episodes.keys() & baseline.keys())
        if decoder == BASELINE or not seeds:
            continue
        scores = np.array([episodes[seed].max_reward for seed in seeds])
        others = np.array([baseline[seed].max_reward for seed in seeds])
        compared[decoder] = paired_p(scores, others)
        difference = bootstrap(scores - others)
        differences[decoder] = {
            "mean": difference.mean,
            "ci80": [difference.low, difference.high],
            "seeds": len(seeds),
        }
    return {"results": found, "paired_p": compared, "paired_difference": differences}


def table(summary: Mapping[str, Any], title: str) -> Table:
    """The summary for people, 80 characters wide."""
    episodes = max(row["episodes"] for row in summary["results"].values())
    made = Table(
        title=f"{title}, {episodes} episodes",
        caption="80 %: bootstrap and Wilson intervals; p: two-sided, paired with "
        f"{BASELINE.replace('_', ' ')}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    made.add_column("decoder", no_wrap=True)
    for heading in ("max reward", "80 %", "success", "80 %", "gain", "p"):
        made.add_column(heading, justify="right", no_wrap=True)
    for decoder, row in summary["results"].items():
        against = summary["paired_difference"].get(decoder)
        made.add_row(
            decoder,
            f"{row['mean_max_reward']:.3f}",
            _span(row["ci80"], 3),
            f"{row['success_rate'] * 100:.1f} %",
            _span([100 * end for end in row["success_ci80"]], 0),
            "" if against is None else f"{against['mean']:+.3f}",
            "" if against is None else _p(summary["paired_p"][decoder]),
        )
    return made


def _span(ends: list[float], digits: int) -> str:
    return f"{ends[0]:.{digits}f}-{ends[1]:.{digits}f}"


def _p(value: float) -> str:
    return "<.0001" if value < 1e-4 else f"{value:.4f}"


def plot(results: Results, summary: Mapping[str, Any], path: Path, title: str) -> None:
    """Means with their intervals, and how many episodes reach each reward."""
    decoders = list(summary["results"])
    colours = {name: f"C{number % 10}" for number, name in enumerate(decoders)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for place, decoder in enumerate(decoders):
        row = summary["results"][decoder]
        low, high = row["ci80"]
        colour = colours[decoder]
        left.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.5)
        left.plot(row["mean_max_reward"], place, "o", color=colour)
        left.annotate(
            f"{row['mean_max_reward']:.3f}",
            (row["mean_max_reward"], place),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=8,
        )
        rewards = np.sort([result.max_reward for result in results[decoder].values()])
        share = 1.0 - np.arange(len(rewards)) / len(rewards)
        right.step(rewards, share, where="pre", color=colour, label=decoder.replace("_", " "))
    left.set_yticks(range(len(decoders)), [name.replace("_", " ") for name in decoders])
    left.set_ylim(len(decoders) - 0.4, -0.6)
    left.set_xlabel("mean max reward, 80 % interval")
    right.set_xlabel("max reward")
    right.set_ylabel("share of episodes that reach it")
    right.set_xlim(0.0, 1.01)
    right.set_ylim(0.0, 1.01)
    right.legend(fontsize=8, loc="lower left")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
