"""The ledger and what it adds up to: once a reason, taken back for its day, the same made anew."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from collect.crowd import ledger, standings
from collect.crowd.database import Database
from collect.crowd.standings import Place
from collect.crowd.tables import (
    LedgerEntry,
    Participant,
    SiteVersion,
    Standing,
)
from tests.crowd.factories import make_participant, make_task

MONDAY = dt.datetime(2026, 11, 16, 12, tzinfo=dt.UTC)
PARALLEL = 50


def award(tx: Session, key: str, who: str, points: int, **more: object) -> LedgerEntry | None:
    given = {"play_id": None, "task_id": None, "kind": "staff", "at": MONDAY, **more}
    return ledger.award(tx, key=key, participant_id=who, points=points, **given)  # type: ignore[arg-type]


def scores(tx: Session, who: str) -> dict[tuple[str, str], int]:
    rows = tx.execute(select(Standing).where(Standing.participant_id == who)).scalars()
    return {(row.scope, row.period): row.score for row in rows}


def test_an_award_counts_on_its_boards(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx, created_at=MONDAY).id
        task = make_task(tx).id
        award(tx, "a", who, 10, task_id=task, quality=3)
    with database.read() as tx:
        assert scores(tx, who) == {
            (scope, period): 3 if scope == "quality" else 10
            for scope in ("all", f"task:{task}", "newcomers", "quality")
            for period in ("all", "2026-11-16", "2026-W47")
        }


def test_the_same_key_counts_once(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
        assert award(tx, "a", who, 10) is not None
        assert award(tx, "a", who, 99) is None
        assert scores(tx, who)["all", "all"] == 10


def test_a_reversal_counts_for_the_day_of_what_it_reverses(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx, created_at=MONDAY).id
        first = award(tx, "a", who, 10)
        second = award(tx, "b", who, 20, at=MONDAY + dt.timedelta(days=1))
        assert first is not None and second is not None
        reversal = ledger.reverse(tx, second, at=MONDAY + dt.timedelta(days=9))
        assert reversal is not None
        assert (reversal.points, reversal.counts_at) == (-20, second.counts_at)
        assert ledger.reverse(tx, second) is None
        assert scores(tx, who) == {
            (scope, period): 10
            for scope in ("all", "newcomers")
            for period in ("all", "2026-11-16", "2026-W47")
        }
        # As if it had never been: the score was reached on Monday.
        standing = tx.get_one(Standing, ("all", "all", who))
        assert standing.reached_at == MONDAY
        with pytest.raises(ledger.LedgerError, match="a reversal itself"):
            ledger.reverse(tx, reversal)


def test_entries_are_counted_for_operators_by_kind(database: Database) -> None:
    def counted() -> list[float]:
        kinds = ("staff", "reversal")
        return [REGISTRY.get_sample_value("crowd_awards_total", {"kind": k}) or 0.0 for k in kinds]

    before = counted()
    with database.begin() as tx:
        who = make_participant(tx).id
        first = award(tx, "a", who, 10)
        assert first is not None and award(tx, "a", who, 10) is None
        ledger.reverse(tx, first)
    with pytest.raises(KeyError), database.begin() as tx:
        award(tx, "undone", who, 10)
        raise KeyError
    with database.begin() as tx:  # on the same connection
        award(tx, "b", who, 10)
        award(tx, "c", who, 10)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [3.0, 1.0]


def test_newcomers_are_new_for_seven_days(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx, created_at=MONDAY).id
        award(tx, "last", who, 1, at=MONDAY + dt.timedelta(days=7, microseconds=-1))
        award(tx, "late", who, 2, at=MONDAY + dt.timedelta(days=7))
        assert scores(tx, who)["newcomers", "all"] == 1
        assert scores(tx, who)["all", "all"] == 3


def test_days_and_weeks_begin_at_the_sites_midnight(database: Database) -> None:
    sunday_night = dt.datetime(2026, 11, 22, 23, 30, tzinfo=dt.UTC)  # Monday, 0:30 in Berlin
    with database.begin() as tx:
        who = make_participant(tx, created_at=MONDAY).id
        award(tx, "a", who, 5, at=sunday_night)
        assert {"2026-11-22", "2026-W47"} <= {period for _, period in scores(tx, who)}
        standings.set_zone(tx, "Europe/Berlin")
        assert {"2026-11-23", "2026-W48"} <= {period for _, period in scores(tx, who)}
        assert not standings.differences(tx)
        award(tx, "b", who, 5, at=sunday_night)
        assert scores(tx, who)["all", "2026-11-23"] == 10


@pytest.mark.parametrize(("day", "week"), [("2027-01-01", "2026-W53"), ("2024-12-30", "2025-W01")])
def test_weeks_are_iso_weeks(day: str, week: str) -> None:
    at = dt.datetime.fromisoformat(f"{day}T12:00:00+00:00")
    assert standings.period_keys(at, "UTC") == {"all": "all", "day": day, "week": week}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gift"}, "no entry is of kind"),
        ({"kind": "reversal"}, "no entry is of kind"),
        ({"points": 10_001}, "more than"),
        ({"quality": -10_001}, "more than"),
        ({"participant_id": "nobody"}, "there is no participant"),
    ],
)
def test_nonsense_is_refused(database: Database, change: dict[str, object], message: str) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
        values = {"key": "a", "participant_id": who, "play_id": None, "task_id": None}
        values |= {"kind": "staff", "points": 1}
        with pytest.raises(ledger.LedgerError, match=message):
            ledger.award(tx, **{**values, **change})  # type: ignore[arg-type]
        assert tx.scalar(select(func.count(LedgerEntry.id))) == 0


def test_what_is_stored_wrongly_is_found_and_mended(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx, created_at=MONDAY).id
        award(tx, "a", who, 10)
        tx.execute(update(Standing).where(Standing.scope == "all").values(score=11))
        tx.execute(delete(Standing).where(Standing.scope == "newcomers", Standing.period == "all"))
        found = standings.differences(tx)
        assert found[("all", "all", who)] == (Place(11, MONDAY), Place(10, MONDAY))
        assert found[("newcomers", "all", who)] == (None, Place(10, MONDAY))
        assert len(found) == 4
        standings.rebuild(tx)
        assert not standings.differences(tx)


@pytest.mark.parametrize(
    "change",
    [{"hidden": True}, {"on_board": False}, {"nickname": "Eve"}, {"nickname_state": "refused"}],
)
def test_what_boards_show_of_people_moves_their_version(
    database: Database, change: dict[str, object]
) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
    with database.begin() as tx:
        participant = tx.get_one(Participant, who)
        before = standings.site_version(tx)[0]
        participant.language = "de"
        tx.flush()
        assert standings.site_version(tx)[0] == before
        for name, value in change.items():
            setattr(participant, name, value)
        tx.flush()
        assert standings.site_version(tx)[0] == before + 1


def test_an_undone_transaction_leaves_nothing(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
        award(tx, "a", who, 10)
    with pytest.raises(ZeroDivisionError), database.begin() as tx:
        award(tx, "b", who, 10)
        raise ZeroDivisionError
    with database.read() as tx:
        assert scores(tx, who)["all", "all"] == 10
        assert not standings.differences(tx)


# -- any sequence ------------------------------------------------------------------------------

people = st.integers(0, 2)
awards = st.tuples(
    st.just("award"),
    people,
    st.integers(-5, 20),  # points
    st.integers(0, 3),  # quality
    st.integers(-30, 12 * 24),  # hours
    st.integers(0, 2),  # task; 0 is none
)
steps = st.lists(
    awards | st.tuples(st.just("reverse"), st.integers(0, 30)) | st.just(("rebuild",)),
    max_size=25,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
@given(steps=steps, zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati"]))
def test_standings_are_what_the_ledger_adds_up_to(
    database: Database, steps: list[tuple[object, ...]], zone: str
) -> None:
    with database.begin() as tx:
        for table in (Standing, LedgerEntry, SiteVersion):
            # A reversal points to what it reverses.
            if table is LedgerEntry:
                tx.execute(delete(LedgerEntry).where(LedgerEntry.reverses_id.is_not(None)))
            tx.execute(delete(table))
        standings.set_zone(tx, zone)
        who = [make_participant(tx, created_at=MONDAY).id for _ in range(3)]
        tasks = [None, make_task(tx).id, make_task(tx).id]
        entries: list[LedgerEntry] = []
        for number, step in enumerate(steps):
            if step[0] == "award":
                _, person, points, quality, hours, task = step
                entry = award(
                    tx,
                    f"key {number}",
                    who[person],  # type: ignore[index]
                    points,  # type: ignore[arg-type]
                    quality=quality,
                    task_id=tasks[task],  # type: ignore[index]
                    at=MONDAY + dt.timedelta(hours=hours),  # type: ignore[arg-type]
                )
                assert entry is not None
                entries.append(entry)
            elif step[0] == "reverse" and entries:
                ledger.reverse(tx, entries[step[1] % len(entries)])  # type: ignore[operator]
            elif step[0] == "rebuild":
                standings.rebuild(tx)
            assert standings.differences(tx) == {}
        _agrees_with_plain_sums(tx, who)


def _agrees_with_plain_sums(tx: Session, who: list[str]) -> None:
    """The sums by another way: every entry, reversals too, added up by SQL."""
    for person in who:
        stored = tx.get(Standing, ("all", "all", person))
        assert ledger.points_of(tx, person) == (0 if stored is None else stored.score)


# -- at once -----------------------------------------------------------------------------------


def _claim(database: Database, who: str) -> bool:
    with database.begin() as tx:
        return award(tx, "claim:one", who, 10) is not None


def _claim_in_a_process(url: str, who: str, results: multiprocessing.Queue[bool]) -> None:
    database = Database(url)
    try:
        with ThreadPoolExecutor(10) as threads:
            for given in threads.map(lambda _: _claim(database, who), range(10)):
                results.put(given)
    finally:
        database.close()


def _one_award(database: Database, who: str) -> None:
    with database.read() as tx:
        assert tx.scalar(select(func.count(LedgerEntry.id))) == 1
        assert scores(tx, who)["all", "all"] == 10
        assert not standings.differences(tx)


def test_fifty_claims_of_threads_are_one_award(database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
    barrier = threading.Barrier(PARALLEL)

    def claim(_: int) -> bool:
        barrier.wait(30.0)
        return _claim(database, who)

    with ThreadPoolExecutor(PARALLEL) as threads:
        assert sum(threads.map(claim, range(PARALLEL))) == 1
    _one_award(database, who)


@pytest.mark.slow
def test_fifty_claims_of_processes_are_one_award(database: Database, database_url: str) -> None:
    with database.begin() as tx:
        who = make_participant(tx).id
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[bool] = context.Queue()
    processes = [
        context.Process(target=_claim_in_a_process, args=(database_url, who, results))
        for _ in range(PARALLEL // 10)
    ]
    for process in processes:
        process.start()
    given = [results.get(timeout=60.0) for _ in range(PARALLEL)]
    for process in processes:
        process.join(30.0)
        assert process.exitcode == 0
    assert sum(given) == 1
    _one_award(database, who)
