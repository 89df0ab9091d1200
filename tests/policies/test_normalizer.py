"""Statistics: there and back, constant features, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from policies.normalizer import Kind, Normalizer, Scale
from robot_stack.errors import ConfigError, PolicyError

rows = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(rows, st.sampled_from(["minmax", "gaussian"]))
def test_there_and_back(values: NDArray[np.float64], kind: Kind) -> None:
    scale = Scale.fit(values, kind)
    normalized = scale.normalize(values)
    assert normalized.dtype == np.float32
    assert np.isfinite(normalized).all()
    back = scale.restore(normalized)
    # float32 keeps 24 bits of what is left once the center is taken off
    width = np.abs(values - np.array(scale.center)).max() + np.abs(values).max() + 1
    np.testing.assert_allclose(back, values, rtol=0, atol=3e-7 * width)
    if kind == "minmax":
        assert np.abs(normalized).max() <= 1 + 1e-6


def test_ranges() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(50, 10, (5000, 3))
    minmax = Scale.fit(values).normalize(values)
    np.testing.assert_allclose((minmax.min(axis=0), minmax.max(axis=0)), [[-1] * 3, [1] * 3])
    gaussian = Scale.fit(values, "gaussian").normalize(values)
    np.testing.assert_allclose(gaussian.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(gaussian.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["minmax", "gaussian"])
def test_constant_features_are_only_shifted(kind: Kind) -> None:
    values = np.array([[3.0, 1.0], [3.0, 2.0], [3.00001, 4.0]])
    scale = Scale.fit(values, kind)
    assert scale.width[0] == 1
    np.testing.assert_allclose(scale.normalize(np.array([[3.5, 1.0]]))[0, 0], 0.5, atol=1e-4)


def test_unknown_numbers_are_refused_by_column() -> None:
    values = np.zeros((4, 3))
    values[2, 1] = np.nan
    with pytest.raises(PolicyError, match=r"columns \[1\]"):
        Scale.fit(values)
    for shape in ((0, 3), (5,)):
        with pytest.raises(PolicyError, match="rows"):
            Scale.fit(np.zeros(shape))


def test_json_and_digest() -> None:
    rng = np.random.default_rng(1)
    one = Normalizer.fit(rng.normal(size=(9, 4)), rng.normal(size=(9, 2)))
    again = Normalizer.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.sha256 == one.sha256
    other = Normalizer.fit(rng.normal(size=(9, 4)), rng.normal(size=(9, 2)))
    assert other.sha256 != one.sha256


def test_impossible_json_is_refused() -> None:
    good = Normalizer.fit(np.eye(2), np.eye(2)).to_json()
    for change in (
        {"kind": "robust"},
        {"width": [0.0, 1.0]},
        {"width": [1.0]},
        {"center": [float("nan"), 0.0]},
        {"scale": 1},
    ):
        with pytest.raises(ConfigError, match="normalizer"):
            Normalizer.from_json({**good, "state": {**good["state"], **change}})
