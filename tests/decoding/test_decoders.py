"""Each decoder against small examples worked by hand, and BID against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decoding.rtc import soft_mask
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.interfaces import Array, Step
from tests.decoding.made import Affine, ask, contract, draw_of, guide_of, session, step

NONE = np.zeros((0, 4, 1), dtype=np.float32)


def column(*values: float) -> Array:
    return np.array(values, dtype=np.float32)[:, None]


def chunks(*rows: tuple[float, ...]) -> Array:
    return np.stack([column(*values) for values in rows])


# -- receding horizon, EMA, ensemble -------------------------------------------------------------


def test_receding_horizon_sends_its_sample_from_the_newest_moment_on() -> None:
    shape = contract(horizon=4, dof=1)
    decoder = make_decoder("receding_horizon")
    assert draw_of("receding_horizon", step(), Affine(shape)).noise.shape == (1, 4, 1)
    chosen = decoder.choose(step(), chunks((9, 1, 2, 3)), NONE, shape)
    assert decoder.emit(step(), chosen, shape)[:, 0].tolist() == [1, 2, 3]


def test_ema_averages_what_the_executed_chunk_reaches() -> None:
    shape = contract(horizon=4, dof=1)
    fresh = chunks((8, 8, 8, 8))
    half = make_decoder("ema").choose(step(column(0, 4)), fresh, NONE, shape)
    assert half[:, 0].tolist() == [4, 6, 8, 8]
    quarter = make_decoder("ema", {"newest": 0.25})
    assert quarter.choose(step(column(0, 4)), fresh, NONE, shape)[:, 0].tolist() == [2, 5, 8, 8]
    assert make_decoder("ema").choose(step(), fresh, NONE, shape)[:, 0].tolist() == [8] * 4


def test_ema_fades_old_chunks_geometrically() -> None:
    """The average is what is remembered: after 1, 0, 0, 0 a row of the first weighs 1/8."""
    hosted = Hosted(Affine(contract(horizon=8, dof=1), width=0.0))
    robot = session("ema", hosted)
    previous = -1
    for value, expected in ((1, 1), (0, 1 / 2), (0, 1 / 4), (0, 1 / 8)):
        previous, rows = ask(hosted, robot, previous, int(previous >= 0), value=value)
        assert rows[0, 0] == pytest.approx(expected)


def test_temporal_ensemble_weighs_the_oldest_most() -> None:
    shape = contract(horizon=4, dof=1)
    decoder = make_decoder("temporal_ensemble", {"decay": 0.5})
    at = step(column(0, 4, 4), column(0, 1))  # newest first; rows 0 are the past
    sent = decoder.emit(at, column(0, 9, 9, 9), shape)[:, 0]
    a, b, c = 1.0, math.exp(-0.5), math.exp(-1.0)
    assert sent[0] == pytest.approx((a * 1 + b * 4 + c * 9) / (a + b + c))
    assert sent[1] == pytest.approx((a * 4 + b * 9) / (a + b))  # the oldest that reaches it
    assert sent[2] == pytest.approx(9)


def test_temporal_ensemble_remembers_raw_predictions() -> None:
    """ACT at one row a step: the row sent at step n is the ensemble of n + 1 raw predictions."""
    hosted = Hosted(Affine(contract(horizon=8, first_action=0, dof=1), width=0.0))
    robot = session("temporal_ensemble", hosted)
    values = [3.0, -1.0, 2.0, 5.0, 0.0, 1.0, 1.0, 4.0, -2.0, 6.0]
    previous = -1
    for n, value in enumerate(values):
        previous, rows = ask(hosted, robot, previous, int(n > 0), value=value)
        seen = values[max(0, n - 7) : n + 1]
        weights = [math.exp(-0.01 * i) for i in range(len(seen))]
        mean = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
        assert rows[0, 0] == pytest.approx(mean, abs=1e-6)


def test_ensemble_and_ema_choose_with_the_decoder_below_them() -> None:
    shape = contract(horizon=4, dof=1)
    samples = chunks((0, 9, 9, 9), (0, 4, 4, 4), (0, -9, -9, -9))
    at = step(column(0, 5, 5))
    for name, expected in (("ema", [4.5, 4.5, 4.0]), ("temporal_ensemble", [4.5, 4.5, 4.0])):
        decoder = make_decoder(name, {"of": {"name": "coherence"}})
        assert len(decoder.plan(at, Affine(shape)).noise) == 15
        sent = decoder.emit(at, decoder.choose(at, samples, NONE, shape), shape)[:, 0]
        np.testing.assert_allclose(sent, expected, atol=0.01)


def test_warm_start_begins_from_the_executed_chunk_in_the_units_of_noise() -> None:
    policy = Affine(contract(horizon=4, dof=1))
    plain = draw_of("warm_start", step(), policy).noise
    noise = draw_of("warm_start", step(column(4, 8)), policy).noise
    assert noise[0, :2, 0].tolist() == [1, 2]  # this policy's noise is in quarters
    np.testing.assert_array_equal(noise[0, 2:], plain[0, 2:])


# -- coherence and BID ---------------------------------------------------------------------------


def test_coherence_counts_from_the_first_row_that_can_still_be_executed() -> None:
    shape = contract(horizon=4, dof=1)
    decoder = make_decoder("coherence")
    prior = column(0, 0, 0, 0)
    past, soon, late = (9, 0, 0, 0.1), (0, 1, 0, 0), (0, 0, 3, 3)
    samples = chunks(soon, past, late)
    assert decoder.choose(step(prior), samples, NONE, shape)[0, 0] == 9  # the past costs nothing
    samples = chunks(past, soon)
    assert decoder.choose(step(prior, delay=1), samples, NONE, shape)[1, 0] == 1
    assert decoder.choose(step(), samples, NONE, shape)[0, 0] == 9  # without a prior: the first


def test_coherence_weighs_by_powers_of_rho() -> None:
    shape = contract(horizon=4, dof=1)
    prior = column(0, 0, 0, 0)
    # d_B = (1 a + rho b + rho^2 c) / (1 + rho + rho^2): 1.9 against 2 at rho .5, 1.9 : 1 at .1
    samples = chunks((0, 1.9, 0, 0), (0, 1, 1, 2.0))
    half = make_decoder("coherence", {"rho": 0.5}).choose(step(prior), samples, NONE, shape)
    tenth = make_decoder("coherence", {"rho": 0.1}).choose(step(prior), samples, NONE, shape)
    assert (half[1, 0], tenth[1, 0]) == (pytest.approx(1.9), 1.0)


@pytest.mark.parametrize("name", ["coherence", "bid"])
def test_a_forecast_beyond_the_prior_compares_its_last_row(name: str) -> None:
    shape = contract(horizon=4, dof=1)
    decoder = make_decoder(name, {} if name == "coherence" else {"samples": 6, "modes": 3})
    samples = chunks(*((0, 5, float(i), 5) for i in range(6)))
    chosen = decoder.choose(step(column(0, 5, 3), delay=50), samples, samples, shape)
    assert abs(chosen[2, 0] - 3) <= 1


def test_bid_without_a_prior_worked_by_hand() -> None:
    shape = contract(horizon=2, first_action=0, dof=1)
    decoder = make_decoder("bid", {"samples": 4, "modes": 2})
    strong = chunks((0, 0), (1, 1), (2, 2), (10, 10))
    weak = chunks((0, 0), (0, 0), (0, 0), (50, 50))
    # N // 2 = 2 neighbours. strong: 1.5, 1, 1.5, 8.5; weak: 0, 1, 2, 10; the third is -0.5,
    # the fourth -1.5.
    assert decoder.choose(step(), strong, weak, shape)[0, 0] == 10
    weak = chunks((2, 2), (2, 2), (2, 2), (50, 50))  # strong - weak: -.5, 0, 1.5, .5
    assert decoder.choose(step(), strong, weak, shape)[0, 0] == 0


def test_bid_with_a_prior_worked_by_hand() -> None:
    shape = contract(horizon=3, first_action=1, dof=1)
    decoder = make_decoder("bid", {"samples": 6, "modes": 2})  # keeps 3, compares 1 neighbour
    at = step(column(7, 0, 0))
    strong = chunks(
        (0, 0, 0),  # d_B 0
        (0, 1, 1),  # d_B 1
        (0, 0, 1.5),  # d_B .5
        (0, 9, 9),
        (0, 9.1, 9.1),
        (0, 8.9, 8.9),
    )
    weak = chunks((0, 0, 0), (0, 0, 3), (0, 0, 3), (0, 9, 9), (0, -9, 9), (0, 7, 7))
    # pairs of kept strong: 0-1: 1, 0-2: .75, 1-2: .75; to the nearest kept weak: 0, 1, .75
    # objective: 0 + .75 - 0; 1 + .75 - 1; .5 + .75 - .75 = .5
    assert decoder.choose(at, strong, weak, shape)[2, 0] == 1.5
    # A weak policy that does the third as well: .75, 1 + .75 - .75, .5 + .75 - 0; the first.
    weak[1] = strong[2]
    assert decoder.choose(at, strong, weak, shape)[2, 0] == 0


def norm(a: Array, b: Array) -> float:
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def bid_by_loops(
    at: Step,
    strong: Array,
    weak: Array,
    *,
    samples: int,
    modes: int,
    rho: float,
    first: int,
) -> list[float]:
    """The objective of every strong chunk, infinite for those not kept; written from the paper's
    definition and nothing else."""
    rows = strong.shape[1]

    def backward(chunk: Array) -> float:
        prior = at.priors[0]
        begin = min(first + at.delay, len(prior) - 1)
        total, weight = 0.0, 0.0
        for i, row in enumerate(range(begin, len(prior))):
            total += rho**i * norm(chunk[row], prior[row])
            weight += rho**i
        return total / weight

    def apart(one: Array, other: Array) -> float:
        return sum(norm(one[r], other[r]) for r in range(first, rows)) / (rows - first)

    keep_strong, keep_weak = list(range(len(strong))), list(range(len(weak)))
    if at.priors:
        keep_strong = sorted(keep_strong, key=lambda i: backward(strong[i]))[: samples // modes]
        keep_weak = sorted(keep_weak, key=lambda i: backward(weak[i]))[: samples // modes]
    neighbours = len(keep_strong) // 2
    objective = [math.inf] * len(strong)
    for i in keep_strong:
        near = sorted(apart(strong[i], strong[j]) for j in keep_strong if j != i)[:neighbours]
        far = sorted(apart(strong[i], weak[j]) for j in keep_weak)[:neighbours]
        objective[i] = sum(near) / neighbours - sum(far) / neighbours
        if at.priors:
            objective[i] += backward(strong[i])
    return objective


@settings(deadline=None)
@given(st.data())
def test_bid_is_the_slow_loop(data: st.DataObject) -> None:
    modes = data.draw(st.integers(1, 4), "modes")
    samples = data.draw(st.integers(2 * modes, 15), "samples")
    rho = data.draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]), "rho")
    horizon = data.draw(st.integers(1, 9), "horizon")
    first = data.draw(st.integers(0, horizon - 1), "first")
    dof = data.draw(st.integers(1, 3), "dof")
    scale = data.draw(st.sampled_from([0.01, 1.0, 300.0]), "scale")
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))

    def normal(*shape: int) -> Array:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    strong, weak = normal(samples, horizon, dof), normal(samples, horizon, dof)
    priors = []
    if data.draw(st.booleans(), "prior"):
        priors = [normal(data.draw(st.integers(first + 1, horizon), "length"), dof)]
    at = step(*priors, delay=data.draw(st.integers(0, 10), "delay"))
    decoder = make_decoder("bid", {"samples": samples, "modes": modes, "rho": rho})
    shape = contract(horizon=horizon, first_action=first, dof=dof)
    chosen = decoder.choose(at, strong, weak, shape)
    objective = bid_by_loops(at, strong, weak, samples=samples, modes=modes, rho=rho, first=first)
    picked = next(i for i in range(samples) if (strong[i] == chosen).all())
    assert objective[picked] <= min(objective) + 1e-4 * scale


def test_bid_draws_as_many_weak_as_strong_from_one_stream() -> None:
    policy = Affine(contract())
    draw = draw_of("bid", step(), policy)
    assert (draw.samples, draw.contrast, draw.noise.shape) == (15, 15, (30, 8, 2))
    assert len({row.tobytes() for row in draw.noise}) == 30
    assert draw.start is None


def test_bid_warm_begins_from_the_executed_chunk_and_holds_its_end() -> None:
    policy = Affine(contract(horizon=4, dof=1))
    assert draw_of("bid_warm", step(), policy).start is None
    draw = draw_of("bid_warm", step(column(1, 2, 3)), policy)
    assert draw.start is not None
    assert draw.start[:, 0].tolist() == [1, 2, 3, 3]
    assert draw.level == 0.4
    assert (draw.samples, draw.contrast) == (15, 15)
    assert draw_of("bid", step(column(1, 2, 3)), policy).level == 1.0


# -- RTC -----------------------------------------------------------------------------------------


def test_soft_mask_worked_by_hand() -> None:
    """H 8, delay 2, s 3 executed: certain for 0-1, c = 3/4, 2/4, 1/4 for 2-4 and nothing after."""

    def soft(c: float) -> float:
        return c * (math.exp(c) - 1.0) / (math.e - 1.0)

    expected = [1, 1, soft(3 / 4), soft(2 / 4), soft(1 / 4), 0, 0, 0]
    np.testing.assert_allclose(soft_mask(8, 2, 5), expected, rtol=1e-6)
    np.testing.assert_allclose(soft_mask(4, 0, 3), [soft(3 / 4), soft(2 / 4), soft(1 / 4), 0])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 90), st.integers(0, 70))
def test_soft_mask_is_certain_then_falls_then_ends(rows: int, delay: int, overlap: int) -> None:
    mask = soft_mask(rows, delay, overlap)
    assert (mask[: min(delay, overlap)] == 1).all()
    assert (mask[overlap:] == 0).all()
    assert (np.diff(mask) <= 0).all()
    assert (np.diff(mask[min(delay, overlap) : overlap]) < 0).all()


def test_rtc_guides_towards_the_executed_chunk_and_keeps_the_past() -> None:
    policy = Affine(contract(horizon=6, first_action=2, dof=1))
    assert draw_of("rtc", step(), policy).guide is None
    guide = guide_of(draw_of("rtc", step(column(1, 2, 3, 4, 5), delay=1), policy, limit=3.0))
    assert guide.target[:, 0].tolist() == [1, 2, 3, 4, 5, 5]
    np.testing.assert_array_equal(guide.weights[:2], [1, 1])
    np.testing.assert_array_equal(guide.weights[2:], soft_mask(4, 1, 3))
    assert guide.weights[5] == 0  # the held last row is no target
    assert guide.limit == 3.0


def test_rtc_takes_the_nearest_of_its_guided_samples_and_the_paper_draws_one() -> None:
    policy = Affine(contract(horizon=4, dof=1))
    at = step(column(0, 1, 1))
    draw = draw_of("rtc", at, policy)
    assert (draw.samples, draw.contrast) == (4, 0)
    assert draw_of("rtc", at, policy, samples=1).samples == 1
    assert draw_of("rtc", step(), policy).samples == 1
    samples = chunks((0, 3, 3, 3), (0, 1.5, 0.5, 3), (0, 1, 1, 9), (0, -1, 1, 1))
    chosen = make_decoder("rtc").choose(at, samples, NONE, policy.contract)
    assert chosen[3, 0] == 9


def test_rtc_with_a_forecast_beyond_the_prior_holds_on_to_all_of_it() -> None:
    policy = Affine(contract(horizon=6, first_action=0, dof=1))
    guide = guide_of(draw_of("rtc", step(column(1, 2, 3), delay=40), policy))
    assert guide.weights.tolist() == [1, 1, 1, 0, 0, 0]
