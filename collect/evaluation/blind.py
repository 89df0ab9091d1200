"""Blind A/B of two policies on a real station: random order, a person's verdicts, paired figures.

The person who resets the scene and judges is told the number of a trial, never the policy. Trials
come in pairs, one of each policy in random order, so that light, wear and the operator's mood fall
on both alike, and each pair is compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from rich import box
from rich.table import Table

from collect.evaluation.json_lines import JsonLines
from collect.evaluation.statistics import paired_p, wilson
from robot_stack.errors import ConfigError, EpisodeError

__all__ = ["Answer", "BlindSession", "RunEpisode", "order", "table"]

Answer = Literal["success", "failure", "again", "undo", "quit"]

# (policy, trial number) -> what is worth keeping of the episode, as plain JSON.
RunEpisode = Callable[[str, int], Mapping[str, Any]]

VERSION = 1
NAME = "trials.jsonl"


def order(policies: Sequence[str], pairs: int, seed: int) -> list[str]:
    """Which policy each trial runs: pairs of both, each in random order."""
    random = np.random.default_rng(seed)
    return [policies[i] for _ in range(pairs) for i in random.permutation(2)]


@dataclass(frozen=True, slots=True)
class _Trial:
    number: int
    success: bool
    episode: dict[str, Any]


class BlindSession:
    """The trials of two ``policies`` and what came of them, in ``trials.jsonl`` of ``directory``.

    The file says how the order was drawn, but not beside a verdict which policy it is of; a session
    that was ended goes on with the first trial that has no verdict. ``ready`` is asked before each
    trial, when the scene should be reset, and ends the session with False; ``judge`` gets the trial
    number after it.
    """

    def __init__(
        self,
        directory: Path,
        policies: Sequence[str],
        *,
        pairs: int,
        seed: int,
        run: RunEpisode,
        ready: Callable[[int, int], bool],
        judge: Callable[[int], Answer],
    ) -> None:
        if len(policies) != 2 or policies[0] == policies[1]:
            raise ConfigError(f"a blind comparison is of two policies, not of {list(policies)}")
        if pairs < 1:
            raise ConfigError(f"{pairs} pairs; give at least 1")
        self.policies = tuple(policies)
        self.order = order(policies, pairs, seed)
        self._run, self._ready, self._judge = run, ready, judge
        header = {"version": VERSION, "policies": list(policies), "pairs": pairs, "seed": seed}
        self._file = JsonLines(directory / NAME, header)
        self._trials: dict[int, _Trial] = {}
        try:
            for line in self._file.lines:
                self._remember(line)
        except (KeyError, TypeError) as error:
            self._file.close()
            raise EpisodeError(
                f"{self._file.path} has a line that is no trial ({error!r}); delete that line"
            ) from error

    def _remember(self, line: Mapping[str, Any]) -> None:
        number = int(line["trial"])
        if line["success"] is None:  # taken back
            self._trials.pop(number, None)
        else:
            self._trials[number] = _Trial(number, bool(line["success"]), dict(line["episode"]))

    def _keep(self, trial: int, success: bool | None, episode: Mapping[str, Any]) -> None:
        line = {"trial": trial, "success": success, "episode": dict(episode)}
        self._file.append(line)
        self._remember(line)

    @property
    def next_trial(self) -> int | None:
        """The first trial, from 0, without a verdict; None when all have one."""
        return next((n for n in range(len(self.order)) if n not in self._trials), None)

    def conduct(self) -> None:
        """Run trials until all have a verdict or the person quits."""
        while (trial := self.next_trial) is not None:
            if not self._ready(trial, len(self.order)):
                return
            episode = self._run(self.order[trial], trial)
            answer = self._judge(trial)
            while answer == "undo":  # the one before was judged wrongly: it is run again
                if trial - 1 in self._trials:
                    self._keep(trial - 1, None, {})
                answer = self._judge(trial)
            if answer == "quit":
                return
            if answer != "again":
                self._keep(trial, answer == "success", episode)

    def report(self) -> dict[str, Any]:
        """Plain JSON: successes of each policy with 80 % intervals, and over the pairs that are
        complete how likely their difference is by chance (two-sided; for up to 16 pairs the exact
        McNemar test)."""
        found: dict[str, Any] = {}
        for policy in self.policies:
            verdicts = [t.success for n, t in self._trials.items() if self.order[n] == policy]
            estimate = wilson(sum(verdicts), len(verdicts))
            found[policy] = {
                "trials": len(verdicts),
                "successes": sum(verdicts),
                "success_rate": estimate.mean if verdicts else None,
                "ci80": [estimate.low, estimate.high] if verdicts else None,
            }
        pairs = [
            (first, first + 1)
            for first in range(0, len(self.order), 2)
            if first in self._trials and first + 1 in self._trials
        ]
        scores: dict[str, list[float]] = {policy: [] for policy in self.policies}
        for pair in pairs:
            for number in pair:
                scores[self.order[number]].append(float(self._trials[number].success))
        a, b = (scores[policy] for policy in self.policies)
        return {
            "policies": found,
            "pairs": len(pairs),
            "paired_p": paired_p(a, b) if pairs else None,
            "complete": self.next_trial is None,
            "trials": [
                {"trial": n, "policy": self.order[n], "success": t.success, **t.episode}
                for n, t in sorted(self._trials.items())
            ],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def table(report: Mapping[str, Any]) -> Table:
    """The report for people: the first place where a policy's name stands beside its verdicts."""
    p = report["paired_p"]
    made = Table(
        title=f"blind comparison, {report['pairs']} pairs",
        caption="80 % intervals: Wilson"
        + ("" if p is None else f"; p = {p:.3f}, two-sided, paired permutation"),
        box=box.SIMPLE_HEAD,
    )
    made.add_column("policy")
    for heading in ("trials", "successes", "rate", "80 %"):
        made.add_column(heading, justify="right")
    for policy, row in report["policies"].items():
        rated = row["success_rate"] is not None
        made.add_row(
            policy,
            str(row["trials"]),
            str(row["successes"]),
            f"{row['success_rate'] * 100:.0f} %" if rated else "",
            f"{row['ci80'][0] * 100:.0f}-{row['ci80'][1] * 100:.0f} %" if rated else "",
        )
    return made
