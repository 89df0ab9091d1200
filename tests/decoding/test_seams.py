"""Seams at 200 ms of delay: RTC and BID against taking each chunk as it comes; and the judges."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import seams
from benchmarks._forks import hosted, reference
from benchmarks._simulated_runner import SPEC, Log
from policies.hosted import Hosted

MODELS = ["diffusion", "flow"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=MODELS)
def policy(request: pytest.FixtureRequest) -> Hosted:
    return hosted(request.param, SPEC)


def test_rtc_and_bid_halve_jump_and_jerk_at_200_ms_and_track_no_worse(policy: Hosted) -> None:
    link = seams.constant(200)
    naive, logs = seams.measure(policy, "naive_async", [link], 6.0)
    assert naive["max_jump"] > 0.3  # it does change its mind at a fork
    for name in ("rtc", "bid"):
        ours, more = seams.measure(policy, name, [link], 6.0)
        logs += more
        assert ours["max_jump"] <= 0.5 * naive["max_jump"], name
        assert ours["max_jerk"] <= 0.5 * naive["max_jerk"], name
        assert ours["tracking_error"] <= naive["tracking_error"], name
    assert sum(map(seams.limit_violations, logs)) == 0


@pytest.mark.parametrize("name", ["sync", "naive_async", "temporal_ensemble", "rtc", "bid"])
def test_without_replies_the_robot_holds_and_goes_on_when_they_come_back(name: str) -> None:
    policy = hosted("diffusion", SPEC)
    _, (log,) = seams.measure(policy, name, [seams.silent], 6.5)
    assert seams.held_when_starved(log)
    assert seams.limit_violations(log) == 0
    quiet = (log.times > 4.5) & (log.times < 5.0)
    assert np.isnan(log.asked[quiet]).all()
    assert np.ptp(log.sent[quiet], axis=0).max() == 0.0
    assert np.ptp(log.sent[log.times > 6.0], axis=0).max() > 0.01


def test_late_and_lost_replies_break_no_limit() -> None:
    policy = hosted("flow", SPEC)
    for name in ("naive_async", "rtc"):
        _, logs = seams.measure(policy, name, [seams.irregular(3)], 5.0)
        assert sum(map(seams.limit_violations, logs)) == 0
        assert logs[0].starved[200:].any()  # the link did its worst


def test_a_run_repeats_bit_for_bit() -> None:
    policy = hosted("diffusion", SPEC)
    runs = [seams.measure(policy, "bid", [seams.irregular(0)], 2.0) for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1][0].sent, runs[1][1][0].sent)


# -- the judges see what is wrong ------------------------------------------------------------------


def log(sent: NDArray[np.float64], seam: int) -> Log:
    """A run at 200 Hz whose first chunk gives way to the second in tick ``seam``."""
    chunk = (np.arange(len(sent)) >= seam).astype(np.int64)
    return Log(sent.copy(), sent, chunk, np.zeros(len(sent), dtype=np.bool_))


def steady(ticks: int = 400) -> NDArray[np.float64]:
    return np.tile(reference(0.0), (ticks, 1))


def test_a_jump_is_measured_at_a_seam_and_only_there() -> None:
    moved = steady()
    moved[300:, 1] += 0.03
    moved[300:, 2] -= 0.04
    assert seams.max_jump(log(moved, 300)) == pytest.approx(0.05)
    assert seams.max_jump(log(moved, 290)) == 0.0
    # Third difference of a step, over 20 ms: twice the step at most.
    assert seams.max_jerk(log(moved, 300)) == pytest.approx(2 * 0.05 / 0.02**3)
    assert seams.max_jerk(log(moved, 290)) == pytest.approx(2 * 0.05 / 0.02**3)
    assert seams.max_jerk(log(moved, 240)) == 0.0


def test_a_ramp_has_no_jerk_and_a_cube_has_its_own() -> None:
    t = np.arange(400) * 0.005
    cube = steady()
    cube[:, 0] += 0.5 * t**3
    assert seams.max_jerk(log(cube, 300)) == pytest.approx(3.0)
    ramp = steady()
    ramp[:, 0] += 0.5 * t
    assert seams.max_jerk(log(ramp, 300)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("joint", "values"),
    [
        (1, [1.26] * 4),  # beyond the shoulder's upper limit
        (3, [0.0, 0.0158, 0.0316, 0.0474]),  # 3.16 rad/s
        (6, [0.0, 0.0, 0.0003, 0.0006]),  # 12 /s^2 at the gripper
    ],
)
def test_what_exceeds_a_limit_is_counted(joint: int, values: list[float]) -> None:
    wrong = steady()
    assert seams.limit_violations(log(wrong, 300)) == 0
    base = 0.0 if joint == 1 else wrong[0, joint]
    wrong[100:104, joint] = base + np.array(values)
    assert seams.limit_violations(log(wrong, 300)) > 0


def starving(drift: float = 0.0, late: float = 0.0, *, stale: bool = True) -> Log:
    """Starved from tick 250 to 350; ``drift`` beyond the last row at once, ``late`` towards it."""
    held = log(steady(), 220)
    held.starved[250:350] = True
    held.sent[250:350, 0] += drift
    held.sent[300:350, 0] += late
    if stale:
        held.asked[270:350] = np.nan
    return held


def test_a_hold_is_a_hold() -> None:
    assert seams.held_when_starved(starving())
    assert seams.held_when_starved(starving(drift=0.004))
    assert not seams.held_when_starved(starving(drift=0.006))
    assert not seams.held_when_starved(starving(late=1e-6))
    assert not seams.held_when_starved(starving(stale=False))
    assert not seams.held_when_starved(log(steady(), 300))  # it never starved: nothing was shown


@pytest.mark.slow
def test_the_command_prints_what_it_must_and_fails_on_a_missed_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seams, "MODELS", ("flow",))
    monkeypatch.setattr(seams, "DELAYS_MS", (200,))
    parser = argparse.ArgumentParser()
    seams.add_arguments(parser)
    args = parser.parse_args(["--seconds", "6", "--seeds", "1", "--json"])
    assert seams.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert set(result["decoders"]) >= {"sync", "naive_async", "temporal_ensemble", "rtc", "bid"}
    assert all({"max_jump", "max_jerk"} <= set(row) for row in result["decoders"].values())
    assert result["limit_violations"] == 0
    assert result["held_when_starved"] is True
    assert set(result["tracking_error"]) == set(result["decoders"])
    plain = ("receding_horizon", {})
    changed = {"naive_async": plain, "rtc": plain, "bid": plain}
    monkeypatch.setattr(seams, "DECODERS", changed)
    assert seams.run(args) == 1
    missed = json.loads(capsys.readouterr().out.splitlines()[-1])["missed"]
    assert "flow: rtc's max_jump" in missed
