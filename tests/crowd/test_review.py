"""The review desk's rules: who gets which play, what stands, that the ledger follows once."""

from __future__ import annotations

import datetime as dt
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from collect.crowd import ledger, review, scoring, standings
from collect.crowd.agreement import agreement, gold_hits, kappa
from collect.crowd.config import PointsConfig, ReviewConfig
from collect.crowd.review import ReviewError
from collect.crowd.segments import Segment, SegmentError, canonical, lines, parse, per_row
from collect.crowd.tables import (
    AuditEntry,
    GoldPlay,
    Play,
    Review,
    ReviewSegment,
    ReviewVerdict,
    Staff,
    utc_now,
)

WORTH = PointsConfig()
ONE = ReviewConfig(double_share=0.0)
TWO = ReviewConfig(double_share=1.0)
GOLD_AT_FIFTH = "00000000-0000-4000-8000-000000000023"
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def plays(database, make_participant, make_station, make_task, make_play):
    """Makes plays that wait for review, one a minute, all claimed as successes."""
    ada, station, task = make_participant("Ada"), make_station(), make_task("hard")
    start = utc_now() - dt.timedelta(hours=2)

    def make(count=1, **columns):
        made = []
        for i in range(count):
            values = {"state": "synced", "file": "x.hdf5", "started_at": start + i * MINUTE}
            made.append(make_play(ada, station, task, **{**values, **columns}))
            with database.begin() as tx:
                scoring.claim(tx, tx.get(Play, made[-1].id))
        return made

    return make


@pytest.fixture
def take(database):
    """The next play of somebody, with 100 rows' worth of what they say of it."""

    def next_play(staff, desk=ONE, now=None):
        with database.begin() as tx:
            play = review.next_play(tx, staff, desk, now=now)
        return None if play is None else play.id

    return next_play


@pytest.fixture
def say(database):
    def commit(staff, play_id, decision, quality, segments=(), desk=ONE, now=None):
        with database.begin() as tx:
            mine = review.assignment(tx, play_id, staff)
            return review.commit(
                tx, mine, decision, quality, segments, WORTH, rows=100, desk=desk, now=now
            )

    return commit


def points(database, participant_id):
    with database.read() as tx:
        assert standings.differences(tx) == {}
        return ledger.points_of(tx, participant_id)


def test_the_oldest_unreviewed_play_comes_first_and_nobody_gets_it_beside(
    database, plays, take, say, make_staff
):
    first, second, third = plays(3)
    ada, bob, eve = (make_staff("reviewer") for _ in range(3))
    assert take(ada) == first.id
    assert take(ada) == first.id, "who has a play is given it again"
    assert take(bob) == second.id
    with database.read() as tx:
        assert review.upcoming(tx, ada, first, ONE).id == third.id
        assert review.upcoming(tx, eve, third, ONE) is None
    assert say(ada, first.id, "confirm", 3).decision == "confirm"
    assert take(ada) == third.id
    assert take(eve) is None


def test_plays_without_a_file_or_void_are_not_reviewed(plays, take, make_staff):
    plays(1, file=None)
    plays(1, state="void")
    plays(1, state="finished")
    assert take(make_staff("reviewer")) is None


def test_an_assignment_expires_so_that_nothing_is_stuck(plays, take, say, make_staff):
    (play,) = plays()
    ada, bob = make_staff("reviewer"), make_staff("reviewer")
    now = utc_now()
    assert take(ada, now=now) == play.id
    assert take(bob, now=now + 29 * MINUTE) is None
    assert take(bob, now=now + 31 * MINUTE) == play.id
    assert take(ada, now=now + 32 * MINUTE) is None, "it is Bob's now"
    # Ada was slow, not gone: what she says counts, and Bob's is a second opinion.
    assert say(ada, play.id, "confirm", 2).quality == 2
    assert say(bob, play.id, "reverse", None).decision == "confirm"


def test_a_double_review_is_of_two_people_and_counts_when_both_agree(
    database, plays, take, say, make_staff
):
    (play,) = plays()
    ada, bob, eve = (make_staff("reviewer") for _ in range(3))
    assert take(ada, TWO) == play.id
    assert take(bob, TWO) == play.id
    assert take(eve, TWO) is None
    before = points(database, play.participant_id)
    assert say(ada, play.id, "confirm", 3, desk=TWO) is None
    assert points(database, play.participant_id) == before
    assert take(ada, TWO) is None, "the same reviewer twice"
    verdict = say(bob, play.id, "confirm", 3, desk=TWO)
    assert (verdict.decision, verdict.quality) == ("confirm", 3)
    assert points(database, play.participant_id) > before


def test_about_the_share_that_was_asked_for_is_reviewed_twice():
    ids = [f"{i:08x}-0000-4000-8000-000000000000" for i in range(2000)]
    twice = sum(review._wanted(play_id, ReviewConfig(double_share=0.2)) == 2 for play_id in ids)
    assert 330 < twice < 470


def test_two_who_differ_get_a_third_and_two_of_three_stand(database, plays, take, say, make_staff):
    (play,) = plays()
    ada, bob, eve = (make_staff("reviewer") for _ in range(3))
    for who in (ada, bob):
        assert take(who, TWO) == play.id
    say(ada, play.id, "confirm", 3, desk=TWO)
    assert say(bob, play.id, "reverse", 0, desk=TWO) is None
    assert take(eve, TWO) == play.id
    verdict = say(eve, play.id, "reverse", 1, desk=TWO)
    assert (verdict.decision, verdict.quality) == ("reverse", 0)
    assert points(database, play.participant_id) == 0


def test_who_differ_in_quality_only_get_the_median(plays, take, say, make_staff):
    (play,) = plays()
    staff = [make_staff("reviewer") for _ in range(3)]
    verdict = None
    for who, quality in zip(staff, (3, 1, 2), strict=True):
        assert take(who, TWO) == play.id
        verdict = say(who, play.id, "confirm", quality, desk=TWO)
    assert verdict.quality == 2


def test_an_unclear_play_is_shown_to_a_second(plays, take, say, make_staff):
    (play,) = plays()
    ada, bob = make_staff("reviewer"), make_staff("reviewer")
    assert take(ada) == play.id
    assert say(ada, play.id, "unclear", None) is None
    assert take(bob) == play.id
    assert say(bob, play.id, "unclear", None).decision == "unclear"


def test_three_who_differ_leave_it_to_an_admin(database, plays, take, say, make_staff):
    (play,) = plays()
    staff = [make_staff("reviewer") for _ in range(3)]
    for who, (decision, quality) in zip(
        staff, (("confirm", 2), ("reverse", 0), ("unclear", None)), strict=True
    ):
        assert take(who, TWO) == play.id
        assert say(who, play.id, decision, quality, desk=TWO) is None
    admin = make_staff("admin")
    assert take(admin, TWO) is None
    with database.begin() as tx:
        assert [one.id for one in review.disputes(tx)] == [play.id]
        assert review.waiting(tx) == review.Waiting(queue=0, disputes=1)
        chosen = review.assignment(tx, play.id, staff[1])
        verdict = review.settle(tx, admin, chosen, WORTH)
    assert (verdict.decision, verdict.settled_by) == ("reverse", admin.id)
    assert points(database, play.participant_id) == 0
    with database.begin() as tx:  # and may think again
        review.settle(tx, admin, review.assignment(tx, play.id, staff[0]), WORTH)
        assert review.waiting(tx).disputes == 0
    assert points(database, play.participant_id) > 0


def test_a_commit_counts_once_however_often_it_comes(database, plays, take, make_staff):
    (play,) = plays()
    ada = make_staff("reviewer")
    take(ada)

    def commit():
        with database.begin() as tx:
            mine = review.assignment(tx, play.id, ada)
            segment = Segment(0, 99, "task", 3)
            review.commit(tx, mine, "confirm", 3, [segment], WORTH, rows=100, desk=ONE)

    threads = [threading.Thread(target=commit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as tx:
        assert len(tx.scalars(select(ReviewSegment)).all()) == 1
        assert len(tx.scalars(select(ReviewVerdict)).all()) == 1
        audits = tx.scalars(select(AuditEntry).where(AuditEntry.action == "reviewed")).all()
        entries = ledger.standing_entries(tx, play.id)
    assert len(audits) == 1
    # 20 for a hard one, and 25 % of half of it for 30 s of 40.
    assert sum(entry.points for entry in entries) == 22
    assert sum(entry.quality for entry in entries) == 6
    assert points(database, play.participant_id) == 22


def test_what_cannot_be_is_refused_and_nothing_written(database, plays, take, say, make_staff):
    (play,) = plays()
    ada = make_staff("reviewer")
    take(ada)
    for decision, quality, segments in (
        ("maybe", 1, ()),
        ("confirm", None, ()),
        ("confirm", 4, ()),
        ("reverse", 0, [Segment(0, 100, "task", 1)]),
        ("reverse", 0, [Segment(5, 4, "task", 1)]),
        ("reverse", 0, [Segment(-1, 4, "task", 1)]),
        ("reverse", 0, [Segment(0, 4, "nap", 1)]),
        ("reverse", 0, [Segment(0, 4, "task:pick", 1)]),
        ("reverse", 0, [Segment(0, 4, "play", 1)]),
        ("reverse", 0, [Segment(0, 4, "tutorial", 3)]),
        ("reverse", 0, [Segment(0, 4, "task", 0)]),
    ):
        with pytest.raises((ReviewError, SegmentError)):
            say(ada, play.id, decision, quality, segments)
    with database.read() as tx:
        assert review.assignment(tx, play.id, ada).done_at is None
        assert tx.scalars(select(ReviewSegment)).all() == []
    with database.begin() as tx:
        tx.get(Play, play.id).state = "void"
    with pytest.raises(ReviewError, match="erased"):
        say(ada, play.id, "confirm", 3)


def test_labels_are_those_of_the_review_that_stands(database, plays, take, say, make_staff):
    (play,) = plays()
    with database.begin() as tx:
        task = tx.get(type(play), play.id).task_id
        tx.get_one(review.Task, task).subtasks = ["pick"]
    ada = make_staff("reviewer")
    take(ada)
    with database.read() as tx:
        assert review.labels(tx, play) is None
    segments = [Segment(0, 49, "play", 0), Segment(40, 59, "task:pick", 3)]
    say(ada, play.id, "confirm", 3, segments)
    with database.read() as tx:
        labels = review.labels(tx, play)
    assert labels.label.tolist() == ["play"] * 40 + ["task:pick"] * 20 + [""] * 40
    assert labels.quality.tolist() == [0] * 40 + [3] * 20 + [-1] * 40
    with database.begin() as tx:
        review.forget(tx, play.id)
        assert review.labels(tx, play) is None


def test_gold_plays_are_met_once_without_being_told_and_change_nothing(
    database, plays, take, say, make_staff
):
    (gold,) = plays()
    admin = make_staff("admin")
    take(admin)
    with database.begin() as tx, pytest.raises(ReviewError):
        review.set_gold(tx, admin, tx.get(Play, gold.id), True)
    say(admin, gold.id, "confirm", 3)
    with database.begin() as tx:
        review.set_gold(tx, admin, tx.get(Play, gold.id), True)
    ordinary = {play.id for play in plays(6)}
    before = points(database, gold.participant_id)
    reviewer = make_staff("reviewer", id=GOLD_AT_FIFTH)
    met = []
    for _ in range(5):
        play_id = take(reviewer)
        met.append(play_id)
        if play_id == gold.id:
            say(reviewer, play_id, "reverse", 3)
            break
        say(reviewer, play_id, "unclear", None)
    assert met[-1] == gold.id and set(met[:-1]) <= ordinary
    assert take(reviewer) != gold.id
    assert points(database, gold.participant_id) == before
    with database.read() as tx:
        hits = gold_hits(tx)
        assert tx.get(ReviewVerdict, gold.id).decision == "confirm"
    assert [(one.name, one.plays, one.decision, one.quality) for one in hits] == [
        (reviewer.name, 1, 0, 1)
    ], "the review that made it gold is no hit"


# Cohen's own sums, by hand: 20 both yes, 15 both no, 5 and 10 differ, of 50.
# Agreed 35/50 = 0.7; by chance 25/50 * 30/50 + 25/50 * 20/50 = 0.5; (0.7 - 0.5) / 0.5 = 0.4.
def test_kappa_by_hand():
    assert kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    assert kappa([[10, 0], [0, 10]]) == pytest.approx(1.0)
    assert kappa([[0, 10], [10, 0]]) == pytest.approx(-1.0)
    assert kappa([[25, 25], [25, 25]]) == pytest.approx(0.0)
    assert kappa([[0, 0], [0, 0]]) is None
    assert kappa([[7, 0], [0, 0]]) is None


# First 0,1,2 each of 4, 4, 4; second 3, 5, 4. Squared costs times counts: (0,1) twice 1, (1,2)
# once 1, (2,1) once 1: 4/12. By chance sum of |i-j|^2 p_i q_j = (1/3)(q1 + 4 q2) + (1/3)(q0 + q2)
# + (1/3)(4 q0 + q1) = (5 q0 + 2 q1 + 5 q2) / 3 = (15 + 10 + 20) / 36 = 1.25.
def test_weighted_kappa_by_hand():
    table = [[2, 2, 0], [0, 3, 1], [1, 0, 3]]
    expected = (5 * 3 + 2 * 5 + 5 * 4) / 36
    seen = (2 * 1 + 1 * 1 + 1 * 4) / 12
    assert kappa(table, weighted=True) == pytest.approx(1 - seen / expected)


def test_agreement_is_of_the_first_two_who_gave_a_quality(database, plays, make_staff):
    made = plays(5)
    staff = [make_staff("reviewer") for _ in range(3)]
    now = utc_now()
    said = [(3, 3, 0), (2, 1, 0), (0, 0, None), (None, 1, 1), (3, None, None)]
    with database.begin() as tx:
        for play, qualities in zip(made, said, strict=True):
            for i, (who, quality) in enumerate(zip(staff, qualities, strict=True)):
                tx.add(
                    Review(
                        play_id=play.id,
                        staff_id=who.id,
                        done_at=now + i * MINUTE,
                        decision="confirm",
                        quality=quality,
                    )
                )
        found = agreement(tx)
    assert (found.plays, found.same) == (3, 2)
    assert found.table[3][3] == found.table[2][1] == found.table[0][0] == 1
    # 2/3 agreed; by chance (1*1 + 0*1 + 1*0 + 1*1) / 9 = 2/9.
    assert found.kappa == pytest.approx((2 / 3 - 2 / 9) / (1 - 2 / 9))


kinds = st.sampled_from(
    [("play", 0), ("tutorial", 1), ("tutorial", 2), ("task", 1), ("task", 3), ("task:pick", 2)]
)


@st.composite
def segment_lists(draw):
    rows = draw(st.integers(1, 60))
    segments = []
    for _ in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, rows - 1))
        last = draw(st.integers(first, rows - 1))
        segments.append(Segment(first, last, *draw(kinds)))
    return rows, segments


@settings(max_examples=300, deadline=None)
@given(segment_lists())
def test_any_segments_give_the_labels_that_they_say(case):
    rows, segments = case
    naive = [("", -1)] * rows
    for one in segments:
        for row in range(one.first_row, one.last_row + 1):
            naive[row] = (one.label, one.quality)
    kept = canonical(segments, rows, ("pick",))
    labels = per_row(kept, rows)
    assert list(zip(labels.label.tolist(), labels.quality.tolist(), strict=True)) == naive
    assert labels.quality.dtype == np.int8
    for one, other in itertools.pairwise(kept):
        assert one.last_row < other.first_row
        touching = one.last_row + 1 == other.first_row
        assert not touching or (one.label, one.quality) != (other.label, other.quality)
    assert canonical(kept, rows, ("pick",)) == kept
    assert parse(lines(segments)) == segments


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_segments_or_refused(text):
    try:
        canonical(parse(text), 50)
    except SegmentError:
        return


def test_more_text_than_a_person_writes_is_refused_quickly():
    with pytest.raises(SegmentError, match="500"):
        parse("0 1 play 0\n" * 5000)
    with pytest.raises(SegmentError):
        parse("9" * 30_000 + " 1 play 0")


def test_the_desk_counts_what_waits(database, plays, take, say, make_staff):
    plays(3)
    ada = make_staff("reviewer")
    say(ada, take(ada), "confirm", 1)
    with database.read() as tx:
        assert review.waiting(tx).queue == 2
        assert tx.get(Staff, ada.id) is not None
        assert tx.scalars(select(GoldPlay)).all() == []
