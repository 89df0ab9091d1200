"""What the incentive arms have brought about: episodes and their quality, compared by ranks.

Everybody who has agreed to `research` counts in the arm that they were given, whatever they looked
at (intention to treat), and with zero episodes if they gave none. Who took that back is left out,
with all they did, and so is whom staff have hidden; the report counts them by arm, because they may
have gone for what their arm showed them. Of who was erased not even the arm is known any more.

Only what is confirmed counts: episodes that evidence or staff have confirmed, and the quality that
reviewers have settled on. Quality is known of those only who have a reviewed episode; that
comparison is no longer one of groups by chance, and says so.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd import consent
from collect.crowd.experiment import ARMS
from collect.crowd.rank_test import holm, least_p, mann_whitney, superiority_interval
from collect.crowd.tables import (
    Consent,
    Exposure,
    LedgerEntry,
    Participant,
    Play,
    ReviewVerdict,
    Tombstone,
)
from collect.evaluation.statistics import bootstrap

__all__ = ["LEVEL", "OUTCOMES", "REASONS", "Person", "Sample", "analyse", "as_text", "gather"]

OUTCOMES = ("episodes", "quality")
REASONS = ("withdrawn", "not agreed", "hidden")  # why somebody with an arm is left out
LEVEL = 0.95
ALPHA = 0.05
FEW = 20  # of an arm: what ranks can tell then is a very large difference only


@dataclass(frozen=True, slots=True)
class Person:
    """A participant of the experiment: ``episodes`` confirmed, mean ``quality`` by reviewers (None
    without a reviewed one). A ``guest`` may be somebody who was here before, in another arm."""

    arm: str
    exposed: bool
    guest: bool
    episodes: int
    quality: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """``people`` are compared. ``left_out``: (arm, reason) -> how many are not; ``erased``: how
    many are gone altogether, with an arm or without."""

    people: Sequence[Person]
    left_out: Mapping[tuple[str, str], int]
    erased: int


def gather(tx: Session) -> Sample:
    """All who have an arm: those who are compared, and how many are not."""
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
    consents: dict[str, list[Consent]] = {}
    for given in tx.scalars(select(Consent)):
        consents.setdefault(given.participant_id, []).append(given)
    erased = select(func.count()).where(Tombstone.kind == "participant")
    people = []
    left_out: Counter[tuple[str, str]] = Counter()
    for who in tx.scalars(
        select(Participant)
        .where(Participant.arm.is_not(None), Participant.erased_at.is_(None))
        .order_by(Participant.id)
    ):
        arm = str(who.arm)
        reason = _left_out(who, consents.get(who.id, []))
        if reason is not None:
            left_out[arm, reason] += 1
            continue
        people.append(
            Person(
                arm=arm,
                exposed=(who.id, arm) in exposed,
                guest=who.kind == "guest",
                episodes=int(episodes.get(who.id, 0)),
                quality=None if who.id not in qualities else float(qualities[who.id]),
            )
        )
    return Sample(people, left_out, tx.scalar(erased) or 0)


def _left_out(who: Participant, consents: Iterable[Consent]) -> str | None:
    """Why somebody is not compared, one of ``REASONS``; None for who is."""
    if who.hidden:
        return "hidden"
    agreed = [given for given in consents if consent.RESEARCH in given.scopes]
    if not agreed:
        return "not agreed"
    return None if any(consent.covers(given, consent.RESEARCH) for given in agreed) else "withdrawn"


def analyse(sample: Sample) -> dict[str, Any]:
    """Plain JSON: by arm who took part and what they gave, with 95 % intervals of means, and who is
    left out; by outcome each pair of arms with U, p, p by Holm, and how likely one of the first
    gives more."""
    everybody = sample.people
    names = [name for name in ARMS if any(person.arm == name for person in everybody)]
    arms = {name: [person for person in everybody if person.arm == name] for name in names}
    outcomes = {
        outcome: _compare({name: _values(group, outcome) for name, group in arms.items()})
        for outcome in OUTCOMES
    }
    return {
        "participants": len(everybody),
        "arms": {name: _describe(group) for name, group in arms.items()},
        "left_out": {
            name: {reason: sample.left_out.get((name, reason), 0) for reason in REASONS}
            for name in ARMS
        },
        "erased": sample.erased,
        "outcomes": outcomes,
        "warnings": [*_warnings(arms), *_who_is_missing(sample)],
    }


def as_text(report: dict[str, Any]) -> str:
    """The report in words, as Markdown."""
    lines = [
        "# Incentive experiment",
        "",
        f"{report['participants']} participants. Everybody who agreed to research counts in the "
        "arm that chance gave them; only confirmed episodes and settled reviews count.",
        "",
        "| arm | participants | guests | exposed | with an episode | episodes "
        "| a participant (95 %) | reviewed | quality (95 %) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in report["arms"].items():
        lines.append(
            f"| {name} | {arm['participants']} | {arm['guests']} | {arm['exposed']} "
            f"| {arm['with_episode']} | {arm['episodes']['total']} | {_span(arm['episodes'])} "
            f"| {arm['quality']['known']} | {_span(arm['quality'])} |"
        )
    lines += [
        "",
        "Left out: "
        + "; ".join(
            f"{name} " + ", ".join(f"{number} {reason}" for reason, number in reasons.items())
            for name, reasons in report["left_out"].items()
        )
        + f". Erased, of whatever arm: {report['erased']}.",
    ]
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
        "guests": sum(person.guest for person in group),
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


def _who_is_missing(sample: Sample) -> list[str]:
    """What makes those who are compared other people than those who came."""
    found = []
    guests = sum(person.guest for person in sample.people)
    if guests:
        found.append(
            f"{guests} of {len(sample.people)} are guests. A guest who comes again counts as "
            "somebody new, perhaps in another arm, unless by their code: people are not "
            "independent then, as the tests take them to be."
        )
    withdrawn = sum(sample.left_out.get((name, "withdrawn"), 0) for name in ARMS)
    if withdrawn or sample.erased:
        found.append(
            f"Consent to research was taken back by {withdrawn}, and {sample.erased} were erased. "
            "Who goes may go for what the arm showed: those who are left are no longer groups by "
            "chance alone."
        )
    return found


def _span(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    if estimate["ci95"] is None:
        return f"{estimate['mean']:.2f}"
    low, high = estimate["ci95"]
    return f"{estimate['mean']:.2f} ({low:.2f} to {high:.2f})"
