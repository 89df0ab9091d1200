"""What an episode says of how it was driven, on episodes whose motion is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.crowd.evidence_metrics import ORDER, measure
from collect.crowd.savitzky_golay import derivative
from robot_stack.episode import EpisodeMetadata, EpisodeSchema, EpisodeWriter, RobotLayout, Row
from robot_stack.episode.layout import log_record
from robot_stack.types import Difference

RATE_HZ = 50.0
DT = 1.0 / RATE_HZ
T = np.arange(0.0, 10.0, DT)


def test_derivatives_of_a_polynomial_are_exact() -> None:
    t = T[:, None]
    way = np.hstack([t**3, 2.0 * t**2, 5.0 + 0.0 * t])
    inner = T[12:-12]
    speed = derivative(way, 1, window=25, order=ORDER, dt=DT)
    np.testing.assert_allclose(speed[:, 0], 3 * inner**2, atol=1e-6)
    np.testing.assert_allclose(speed[:, 1], 4 * inner, atol=1e-6)
    jerk = derivative(way, 3, window=25, order=ORDER, dt=DT)
    np.testing.assert_allclose(jerk, np.tile([6.0, 0.0, 0.0], (476, 1)), atol=1e-4)


def test_servo_counts_are_not_jerk() -> None:
    """A gripper that stands still, read in steps of a millimetre, is as smooth as the threshold of
    belief, a tenth of it."""
    rng = np.random.default_rng(1)
    read = np.asarray(1e-3 * rng.integers(0, 2, (500, 3)), dtype=np.float64)
    raw = np.diff(read, 3, axis=0) / DT**3
    smooth = derivative(read, 3, window=25, order=ORDER, dt=DT)
    assert np.sqrt(np.mean(raw**2)) > 100.0
    assert np.sqrt(np.mean(np.sum(smooth**2, axis=1))) < 6.0


def along(joints: Any) -> Any:
    """A gantry: its first joint is where the gripper is, in m."""
    return np.array([joints[0], 0.0, 0.0])


def episode(
    tmp_path: Path,
    ways: list[Any],
    frames: dict[str, Any] | None = None,
    held_s: tuple[float, ...] = (),
) -> Path:
    """Two gantries that move by ``ways``; the guard held the first one back at ``held_s``."""
    schema = EpisodeSchema(
        robots=tuple(RobotLayout(name, ("x", "gripper")) for name in ("left", "right")),
        cameras={},
        rate_hz=RATE_HZ,
    )
    writer = EpisodeWriter(tmp_path / "episode_0.hdf5", schema, EpisodeMetadata())
    for i, (left, right) in enumerate(zip(*ways, strict=True)):
        q = [left, 0.0, right, 0.0]
        writer.append(Row(t_ns=10**9 + round(i * DT * 1e9), qpos=q, action=q))
    log = np.zeros(len(held_s) + 1, log_record(2))
    log["t_ns"] = [10**9 + round(at * 1e9) for at in (*held_s, 9.99)]
    log["difference"][:-1] = int(Difference.COLLISION | Difference.VELOCITY)
    log["difference"][-1] = int(Difference.VELOCITY)
    writer.append_log("left", log)
    return writer.finalise(frames=frames or {})


TIPS = {"left": along, "right": along}
STILL = np.zeros_like(T)


def test_a_known_motion_has_known_numbers(tmp_path: Path) -> None:
    swing = 0.2 * np.sin(2.0 * T)  # 0.8 of a metre each cycle, jerk 0.2 * 8 at its most
    found = measure(episode(tmp_path, [swing, STILL]), TIPS)
    inner = T[12:-12]
    way = float(np.abs(0.4 * np.cos(2.0 * inner)).sum() * DT)
    assert found["seconds"] == pytest.approx(10.0)
    assert found["path_m"] == pytest.approx(way, rel=0.01)
    # Root mean square over both grippers, of which one stands.
    assert found["jerk"] == pytest.approx(1.6 / 2, rel=0.05)
    assert found["idle_fraction"] < 0.05
    assert (found["collisions"], found["dropped_frames"]) == (0, 0)


def test_who_stands_is_idle_and_who_moves_one_arm_is_not(tmp_path: Path) -> None:
    ramp = np.clip(T - 5.0, 0.0, None) * 0.1  # 10 cm/s in the second half
    found = measure(episode(tmp_path, [STILL, ramp]), TIPS)
    assert found["idle_fraction"] == pytest.approx(0.5, abs=0.03)


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    assert "jerk" not in measure(episode(tmp_path, [STILL, STILL]), {})
    short = T[:5]
    (tmp_path / "short").mkdir()
    found = measure(episode(tmp_path / "short", [short, short]), TIPS)
    assert sorted(found) == ["collisions", "dropped_frames", "seconds"]


def test_gaps_in_the_state_are_no_motion(tmp_path: Path) -> None:
    way = np.where((T > 3) & (T < 4), np.nan, 0.3)
    assert measure(episode(tmp_path, [way, STILL]), TIPS)["path_m"] == pytest.approx(0.0, abs=1e-6)


def test_collisions_that_were_held_back_are_counted_by_occasion(tmp_path: Path) -> None:
    held = (1.0, 1.005, 1.01, 1.9, 4.0, 4.5, 8.0)
    assert measure(episode(tmp_path, [STILL, STILL], held_s=held), TIPS)["collisions"] == 3


def test_frames_that_are_missing_are_counted(tmp_path: Path) -> None:
    frames = {"high": {"dropped": 3, "lost": 1}, "low": {"dropped": 2, "lost": 0}}
    assert measure(episode(tmp_path, [STILL, STILL], frames), TIPS)["dropped_frames"] == 6
