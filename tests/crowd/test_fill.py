"""A simulated fortnight: the paper's figures, one robot, points by the ledger alone."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from collect.crowd import standings
from collect.crowd.boards import open_board
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.fill import fill
from collect.crowd.fill_episodes import ROWS, draw_episode
from collect.crowd.fill_plan import SCENES, TIME_SHARES, Fortnight, simulate
from collect.crowd.keys import SiteKey
from collect.crowd.rewards import stock_of
from collect.crowd.tables import (
    Base,
    Consent,
    LedgerEntry,
    Participant,
    Play,
    ReviewVerdict,
    RewardItem,
    Station,
    new_id,
)
from collect.dataset.checks import check_episode
from robot_stack.episode import Episode
from robot_stack.errors import ConfigError

DATABASES = ["sqlite"]
NOON = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
AFTER_MIDNIGHT = dt.datetime(2026, 11, 21, 0, 20, tzinfo=dt.UTC)


@pytest.fixture(params=[NOON, AFTER_MIDNIGHT], ids=["noon", "after midnight"])
def fortnight(request: pytest.FixtureRequest) -> Fortnight:
    return simulate(request.param)


def test_the_figures_are_robocrowds(fortnight: Fortnight) -> None:
    plays = fortnight.plays
    assert (len(fortnight.people), len(plays)) == (231, 817)
    assert Counter(play.scene for play in plays) == {0: 129, 1: 381, 2: 307}
    total = sum(play.seconds for play in plays)
    for kind, share in TIME_SHARES.items():
        of_kind = sum(play.seconds for play in plays if play.kind == kind)
        assert of_kind / total == pytest.approx(share, abs=0.002)
    for play in plays:
        assert play.task is None or play.task in SCENES[play.scene].tasks
    by_person = sorted(Counter(play.person for play in plays).values(), reverse=True)
    assert sum(by_person[:23]) > 0.25 * 817, "a tenth of the people play far more than a tenth"


def test_one_robot_and_one_tutorial_each(fortnight: Fortnight) -> None:
    seen: set[int] = set()
    begins = fortnight.ends - dt.timedelta(days=14)
    for play, after in itertools.pairwise(fortnight.plays):
        assert play.starts < after.starts, "two drive at once"
    for play in fortnight.plays:
        assert begins < play.starts < fortnight.ends
        assert (play.kind == "tutorial") == (play.person not in seen)
        assert fortnight.people[play.person].came < play.starts
        seen.add(play.person)
    assert seen == set(range(231))


def test_nobody_drives_before_another_has_ended() -> None:
    plays = simulate(NOON).plays
    for play, after in itertools.pairwise(plays):
        assert play.starts + dt.timedelta(seconds=play.seconds) < after.starts
        assert 9 <= play.starts.hour < 18 or play.starts.date() == NOON.date()


def test_a_seed_is_a_fortnight() -> None:
    assert simulate(NOON, 3) == simulate(NOON, 3)
    assert simulate(NOON, 3) != simulate(NOON, 4)


def test_drawn_episodes_are_whole(tmp_path: Path) -> None:
    path = draw_episode(
        tmp_path / "episode_0.hdf5", 1, success=True, uuid=new_id(), task="jelly-bean", seed=5
    )
    assert check_episode(path) == []
    with Episode.open(path) as episode:
        assert len(episode) == ROWS
        assert episode.metadata.success is True


@pytest.mark.slow
def test_a_site_is_filled(database: Database, key: SiteKey, config: CrowdConfig) -> None:
    """One test for all, since a fortnight takes ten seconds."""
    now = dt.datetime.now(dt.UTC)
    filled = fill(database, key, config, ends=now)
    assert (filled.participants, filled.episodes) == (231, 817)
    with database.read() as tx:
        assert standings.differences(tx) == {}, "standings are not what the ledger adds up to"
        for table in ("exposure", "help_request", "badge_award", "clip", "nickname_case"):
            rows = select(func.count()).select_from(Base.metadata.tables[table])
            assert tx.scalar(rows), f"nothing in {table}"
        states = dict(tx.execute(select(Play.state, func.count()).group_by(Play.state)).all())
        assert set(states) == {"synced", "void"}, "void are those of who was erased"
        assert states["synced"] > 700
        kinds = set(tx.scalars(select(LedgerEntry.kind).distinct()))
        assert kinds == {"claim", "evidence", "review", "reversal"}
        verdicts = tx.scalar(select(func.count()).select_from(ReviewVerdict))
        assert verdicts is not None and 200 < verdicts < 817, "some wait for a reviewer"
        hidden = tx.scalars(select(Participant).where(Participant.hidden)).all()
        assert hidden
        for scope in ("all", "quality", "newcomers", "task:jelly-bean", "task:hi-chew-ziploc"):
            board = open_board(tx, scope, "all")
            top = board.top(tx, 300)
            assert len(top) == board.count(tx) > 10
            assert not {place.participant_id for place in top} & {who.id for who in hidden}
        names = [place.name for place in open_board(tx, "all", "all").top(tx, 300)]
        assert not all(name.isascii() for name in names), "several scripts"
        assert open_board(tx, "all", "day").count(tx), "today's board is empty"
        for item in tx.scalars(select(RewardItem)):
            assert stock_of(tx, item.id) > 0
        consents = tx.scalar(select(func.count(Consent.id)))
        there = tx.scalar(select(func.count()).where(Participant.erased_at.is_(None)))
        assert consents is not None and there is not None and consents >= there > 220
        station = tx.scalars(select(Station)).one()
        for play in tx.scalars(select(Play).limit(20)):
            assert play.station_id == station.id
            assert (config.episodes / str(play.file)).is_file()
    with pytest.raises(ConfigError, match="participants already"):
        fill(database, key, config, ends=now)
