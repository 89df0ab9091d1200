"""How well reviewers agree: Cohen's kappa on quality, and each one's hits on gold plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.tables import GoldPlay, Review, Staff

__all__ = ["QUALITIES", "Agreement", "Hits", "agreement", "gold_hits", "kappa"]

QUALITIES = 4  # 0 to 3


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of plays that two reviewers gave a quality: ``table[first][second]`` counts them.

    ``kappa`` takes every difference for the same, ``weighted`` by its square; None when there is
    nothing to compare or chance alone would agree.
    """

    plays: int
    same: int
    kappa: float | None
    weighted: float | None
    table: list[list[int]]


@dataclass(frozen=True, slots=True)
class Hits:
    """A reviewer's gold plays, and how many were given the known decision and quality."""

    name: str
    plays: int
    decision: int
    quality: int


def kappa(table: Sequence[Sequence[int]], *, weighted: bool = False) -> float | None:
    """Cohen's kappa of a square table of counts (Cohen 1960; with squared weights, 1968).

    None when the table is empty or both said one and the same thing of everything.
    """
    counts = np.asarray(table, float)
    total = counts.sum()
    if total == 0:
        return None
    share = counts / total
    n = len(counts)
    by_chance = np.outer(share.sum(axis=1), share.sum(axis=0))
    distance: NDArray[np.float64] = np.subtract.outer(np.arange(n), np.arange(n)).astype(float)
    cost = distance**2 if weighted else (distance != 0).astype(float)
    expected = float((cost * by_chance).sum())
    if expected == 0.0:
        return None
    return 1.0 - float((cost * share).sum()) / expected


def agreement(tx: Session) -> Agreement:
    """Of the first two finished reviews of each play, where both gave a quality."""
    rows = tx.execute(
        select(Review.play_id, Review.quality)
        .where(Review.done_at.is_not(None))
        .order_by(Review.play_id, Review.done_at, Review.id)
    )
    by_play: dict[str, list[int | None]] = {}
    for play_id, quality in rows:
        by_play.setdefault(play_id, []).append(quality)
    table = [[0] * QUALITIES for _ in range(QUALITIES)]
    for said in by_play.values():
        if len(said) >= 2 and said[0] is not None and said[1] is not None:
            table[said[0]][said[1]] += 1
    return Agreement(
        plays=sum(map(sum, table)),
        same=sum(table[i][i] for i in range(QUALITIES)),
        kappa=kappa(table),
        weighted=kappa(table, weighted=True),
        table=table,
    )


def gold_hits(tx: Session) -> list[Hits]:
    """Every reviewer who has met a gold play. The reviews that made it gold don't count."""
    rows = tx.execute(
        select(Staff.name, Review, GoldPlay)
        .join(Review, Review.staff_id == Staff.id)
        .join(GoldPlay, GoldPlay.play_id == Review.play_id)
        .where(Review.done_at > GoldPlay.created_at)
        .order_by(Staff.name)
    )
    counts: dict[str, list[int]] = {}
    for name, review, gold in rows:
        count = counts.setdefault(name, [0, 0, 0])
        count[0] += 1
        count[1] += review.decision == gold.decision
        count[2] += review.quality == gold.quality
    return [Hits(name, *count) for name, count in counts.items()]
