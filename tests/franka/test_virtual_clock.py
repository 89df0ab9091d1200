"""The arm's clock bills a client for its own lateness, and for nothing else."""

from __future__ import annotations

from hardware.franka.virtual.clock import Clock

MS = 1_000_000
START = 7_000 * MS


def _at_rest(lock_step: bool = False) -> Clock:
    clock = Clock(START, lock_step=lock_step)
    clock.sent(START)
    return clock


def test_milliseconds_follow_their_deadlines_not_each_other() -> None:
    clock = _at_rest()
    assert clock.due_ns(awaiting=False) == START + MS
    clock.sent(START + MS + 300_000)  # the process woke late, and this did not move the next one
    assert clock.due_ns(awaiting=False) == START + 2 * MS


def test_a_command_is_not_missed_before_a_whole_millisecond_since_its_state() -> None:
    clock = _at_rest()
    late = START + MS + 700_000
    clock.sent(late)
    assert clock.due_ns(awaiting=True) == late + MS
    assert clock.due_ns(awaiting=False) == START + 2 * MS  # it has answered: go on


def test_lost_time_is_made_up_at_the_pace_of_the_answers() -> None:
    clock = _at_rest()
    awake = START + 6 * MS  # five milliseconds overslept
    clock.sent(awake)
    for step in range(2, 7):
        assert clock.due_ns(awaiting=False) == START + step * MS
        assert clock.due_ns(awaiting=True) == awake + MS
        clock.sent(awake)
    assert clock.due_ns(awaiting=False) == START + 7 * MS
    assert clock.skipped_ns == 0


def test_what_is_too_much_to_make_up_is_gone() -> None:
    clock = _at_rest()
    clock.sent(START + 500 * MS)
    assert clock.due_ns(awaiting=False) == START + 500 * MS
    assert clock.skipped_ns == 498 * MS
    assert clock.longest_gap_ns == 500 * MS


def test_in_lock_step_a_client_may_take_two_seconds() -> None:
    clock = _at_rest(lock_step=True)
    assert clock.due_ns(awaiting=True) == START + 2000 * MS
    assert clock.due_ns(awaiting=False) == START + MS  # never faster than the real robot
    clock.sent(START + 300 * MS)
    assert clock.due_ns(awaiting=False) == START + 300 * MS  # nor is anything made up


def test_time_that_stood_still_is_not_owed() -> None:
    clock = _at_rest()
    clock.restart(START + 10_000 * MS)
    assert clock.due_ns(awaiting=True) == START + 10_001 * MS
    assert clock.skipped_ns == 0
