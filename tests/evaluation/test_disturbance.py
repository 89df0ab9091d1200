"""Stochastic actions as BID's: factor, persistence and sum, restated by hand."""

from __future__ import annotations

import numpy as np
import pytest

from collect.evaluation.disturbance import StochasticActions


def test_noise_is_a_factor_of_the_step_that_lasts_and_adds_up():
    noise = StochasticActions(2.0, np.random.default_rng(3))
    steps = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, -1.0]])
    first = noise.of(steps)
    fx, fy = first[0, 0] / 2.0, (first[1, 1] - first[0, 1]) / 2.0
    for factor in (fx, fy):
        assert 0.5 <= abs(factor) <= 1.5
    assert first[:, 0] == pytest.approx([2 * fx, 6 * fx, 14 * fx])
    assert first[:, 1] == pytest.approx([0.0, 2 * fy, 0.0])
    # Nine tenths of the last chunk's step noise, row by row, and a tenth of the new.
    second = noise.of(np.ones((3, 2)))
    new = np.diff(second, axis=0, prepend=0.0) - 0.9 * np.diff(first, axis=0, prepend=0.0)
    assert new == pytest.approx(np.tile(new[0], (3, 1)))
    assert (np.abs(new[0]) >= 0.1 * 0.5 * 2.0 - 1e-12).all()
    assert (np.abs(new[0]) <= 0.1 * 1.5 * 2.0 + 1e-12).all()


def test_factors_cover_both_signs_and_their_range():
    drawn = np.array(
        [
            StochasticActions(1.0, np.random.default_rng(seed)).of(np.ones((1, 2)))[0]
            for seed in range(200)
        ]
    ).ravel()
    assert np.abs(drawn).min() == pytest.approx(0.5, abs=0.02)
    assert np.abs(drawn).max() == pytest.approx(1.5, abs=0.02)
    assert 0.4 < (drawn > 0).mean() < 0.6
