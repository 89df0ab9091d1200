"""The loop's two calls, through the real SDK over a pty."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hardware.dynamixel.bus import DynamixelBus

from .conftest import StartBus

IDS = tuple(range(1, 10))


@pytest.mark.parametrize("fast", [False, True, None])
def test_reads_what_it_has_written(start_bus: StartBus, fast: bool | None) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, fast=fast) as bus:
        assert bus.fast is (fast is None or fast)
        bus.torque(IDS, True)
        goals = np.linspace(1800, 2300, 9).astype(np.int32)
        bus.write_goals(goals)
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            state = bus.read_state(0.5)
            if np.abs(state.position_ticks - goals).max() <= 2:
                break
        np.testing.assert_allclose(state.position_ticks, goals, atol=2)
        assert state.missing == ()
        assert not state.alert.any()
        assert (state.age_s == 0).all()
    log = process.control.goal_log()
    assert log.servo_id.tolist() == list(IDS)
    assert log.value.tolist() == goals.tolist()
