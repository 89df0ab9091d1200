"""What the incentive arms have brought about: episodes and their quality, compared by ranks.

Everybody counts in the arm that they were given, whatever they looked at (intention to treat), and
with zero episodes if they gave none. Only what is confirmed counts: episodes that evidence or staff
have confirmed, and the quality that reviewers have settled on. Quality is known of those only who
have a reviewed episode; that comparison is no longer one of groups by chance, and says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd.experiment import ARMS
from collect.crowd.rank_test import holm, least_p, mann_whitney, superiority_interval
from collect.crowd.tables import Exposure, LedgerEntry, Participant, Play, ReviewVerdict
from collect.evaluation.statistics import bootstrap

__all__ = ["LEVEL", "OUTCOMES", "Person", "analyse", "as_text", "gather"]

OUTCOMES = ("episodes", "quality")
LEVEL = 0.95
ALPHA = 0.05
FEW = 20  # of an arm: what ranks can tell then is a very large difference only


@dataclass(frozen=True, slots=True)
class Person:
    """A participant of the experiment: ``episodes`` confirmed, mean ``quality`` by reviewers (None
    without a reviewed one)."""

    arm: str
    exposed: bool
    episodes: int
    quality: float | None


def gather(tx: Session) -> list[Person]:
    """All who have an arm, but for those who were erased or whom staff have hidden."""
    confirmed = (
        select(LedgerEntry.play_id)
        .where(
            LedgerEntry.play_id.in_(
                select(LedgerEntry.play_id).where(LedgerEntry.kind.in_(("evidence", "review")))
            )
        )
        .group_by(LedgerEntry.play_id)
        .having(func.sum(LedgerEntry.points) > 0)
    )
    episodes = dict(
        tx.execute(
            select(Play.participant_id, func.count())
            .where(Play.kind == "task", Play.state == "synced", Play.id.in_(confirmed))
            .group_by(Play.participant_id)
        ).all()
    )
    qualities: dict[str | None, Any] = dict(
        tx.execute(
            select(Play.participant_id, func.avg(ReviewVerdict.quality))
            .join(ReviewVerdict, ReviewVerdict.play_id == Play.id)
            .where(Play.kind == "task", Play.state == "synced", ReviewVerdict.quality.is_not(None))
            .group_by(Play.participant_id)
        ).all()
    )
    exposed = {
        (who, arm)
        for who, arm in tx.execute(select(Exposure.participant_id, Exposure.arm).distinct())
    }
    people = tx.execute(
        select(Participant.id, Participant.arm)
        .where(
            Participant.arm.is_not(None),
            Participant.hidden.is_(False),
            Participant.erased_at.is_(None),
        )
        .order_by(Participant.id)
    )
    return [
        Person(
            arm=str(arm),
            exposed=(who, arm) in exposed,
            episodes=int(episodes.get(who, 0)),
            quality=None if who not in qualities else float(qualities[who]),
        )
        for who, arm in people
    ]


def analyse(people: Iterable[Person]) -> dict[str, Any]:
    """Plain JSON: by arm who took part and what they gave, with 95 % intervals of means; by outcome
    each pair of arms with U, p, p by Holm, and how likely one of the first gives more."""
    everybody = list(people)
    names = [name for name in ARMS if any(person.arm == name for person in everybody)]
    arms = {name: [person for person in everybody if person.arm == name] for name in names}
    outcomes = {
        outcome: _compare({name: _values(group, outcome) for name, group in arms.items()})
        for outcome in OUTCOMES
    }
    return {
        "participants": len(everybody),
        "arms": {name: _describe(group) for name, group in arms.items()},
        "outcomes": outcomes,
        "warnings": _warnings(arms),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report in words, as Markdown."""
    lines = [
        "# Incentive experiment",
        "",
        f"{report['participants']} participants. Everybody counts in the arm that chance gave "
        "them; only confirmed episodes and settled reviews count.",
        "",
        "| arm | participants | exposed | with an episode | episodes | a participant (95 %) "
        "| reviewed | quality (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in report["arms"].items():
        lines.append(
            f"| {name} | {arm['participants']} | {arm['exposed']} | {arm['with_episode']} "
            f"| {arm['episodes']['total']} | {_span(arm['episodes'])} "
            f"| {arm['quality']['known']} | {_span(arm['quality'])} |"
        )
    for outcome, pairs in report["outcomes"].items():
        lines += ["", f"## {outcome.capitalize()}", ""]
        if outcome == "quality":
            lines += [
                "Of those only who have a reviewed episode: who gives none is missing here, which "
                "is not by chance.",
                "",
            ]
        if not pairs:
            lines.append("Nothing to compare: it takes two arms with somebody in them.")
        for pair in pairs:
            low, high = pair["superiority_ci95"]
            lines.append(
                f"- {pair['first']} against {pair['second']}: U = {pair['u']:g}, "
                f"p = {pair['p']:.4f} ({pair['method']}), by Holm {pair['p_holm']:.4f}; "
                f"one of {pair['first']} has more with {100 * pair['superiority']:.0f} % "
                f"({100 * low:.0f} to {100 * high:.0f})"
            )
    if report["warnings"]:
        lines += ["", "## Mind", "", *(f"- {warning}" for warning in report["warnings"])]
    return "\n".join(lines) + "\n"


def _values(group: Sequence[Person], outcome: str) -> list[float]:
    if outcome == "episodes":
        return [float(person.episodes) for person in group]
    return [person.quality for person in group if person.quality is not None]


def _describe(group: Sequence[Person]) -> dict[str, Any]:
    episodes, quality = _values(group, "episodes"), _values(group, "quality")
    return {
        "participants": len(group),
        "exposed": sum(person.exposed for person in group),
        "with_episode": sum(person.episodes > 0 for person in group),
        "episodes": {"total": int(sum(episodes)), **_estimate(episodes)},
        "quality": {"known": len(quality), **_estimate(quality)},
    }


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "ci95": None}
    found = bootstrap(values, LEVEL)
    # One value, or equal ones, resample to themselves: that is no certainty.
    known = len(set(values)) > 1 and math.isfinite(found.low)
    return {"mean": found.mean, "ci95": [found.low, found.high] if known else None}


def _compare(groups: dict[str, list[float]]) -> list[dict[str, Any]]:
    pairs = [
        (first, second)
        for first, second in itertools.combinations(groups, 2)
        if groups[first] and groups[second]
    ]
    tests = [mann_whitney(groups[first], groups[second]) for first, second in pairs]
    return [
        {
            "first": first,
            "second": second,
            "n": [len(groups[first]), len(groups[second])],
            "u": test.u,
            "p": test.p,
            "p_holm": adjusted,
            "method": test.method,
            "superiority": test.superiority,
            "superiority_ci95": list(superiority_interval(groups[first], groups[second], LEVEL)),
        }
        for (first, second), test, adjusted in zip(
            pairs, tests, holm([test.p for test in tests]), strict=True
        )
    ]


def _warnings(arms: dict[str, list[Person]]) -> list[str]:
    """What the numbers can't say."""
    found = []
    missing = [name for name in ARMS if name not in arms]
    if missing:
        found.append(f"Nobody is in {' and '.join(missing)}.")
    for outcome in OUTCOMES:
        sizes = {name: len(_values(group, outcome)) for name, group in arms.items()}
        few = [f"{name} {size}" for name, size in sizes.items() if size < FEW]
        if few:
            found.append(
                f"Too few people for {outcome} ({', '.join(few)}; {FEW} an arm would be a start): "
                "that no difference is seen does not mean that there is none."
            )
        pairs = list(itertools.combinations(sizes.values(), 2))
        if pairs and all(least_p(n, m) * len(pairs) > ALPHA for n, m in pairs):
            found.append(
                f"With so few, no result of {outcome} whatever could have been significant."
            )
    return found


def _span(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    if estimate["ci95"] is None:
        return f"{estimate['mean']:.2f}"
    low, high = estimate["ci95"]
    return f"{estimate['mean']:.2f} ({low:.2f} to {high:.2f})"
