"""The chain's short cuts do exactly what the servos do one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware.dynamixel import plans
from hardware.dynamixel.chain import Chain
from hardware.dynamixel.control_table import HardwareError
from hardware.dynamixel.log import Log
from hardware.dynamixel.packet import Decoder, Instruction, Packet, encode
from hardware.dynamixel.servo import VirtualServo

BAUD = 1_000_000
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

setups = st.lists(
    st.fixed_dictionaries(
        {
            "operating_mode": st.sampled_from([3, 3, 4, 5]),
            "drive_mode": st.sampled_from([0, 0, 0, 4]),
            "bus_watchdog": st.sampled_from([0, 0, 1, -1]),
            "max_position_limit": st.sampled_from([4095, 3000]),
            "min_position_limit": st.sampled_from([0, 1000]),
            "homing_offset": st.sampled_from([0, -200]),
            "profile_velocity": st.sampled_from([0, 50]),
            "status_return_level": st.sampled_from([2, 2, 2, 1, 0]),
            "secondary_id": st.sampled_from([255, 255, 1]),
            "torque_enable": st.sampled_from([0, 1]),
            "baud_rate": st.sampled_from([3, 3, 3, 4]),
        }
    ),
    min_size=2,
    max_size=5,
)
goals = st.lists(
    st.sampled_from([2048, 0, 999, 1000, 3000, 3001, 4095, 4096, -1, 1_048_575, 1_048_576]),
    min_size=5,
    max_size=5,
)


def chain_of(rows: Sequence[dict[str, int]], away: int, alert: int) -> Chain:
    servos = [VirtualServo(n) for n in range(1, len(rows) + 1)]
    for servo, row in zip(servos, rows, strict=True):
        for name, value in row.items():
            if name != "bus_watchdog":
                servo.set(name, value)
        servo.set("bus_watchdog", row["bus_watchdog"])
    chain = Chain(servos, Log(64), Log(64))
    if away < len(servos):
        servos[away].present = False
    if alert < len(servos):
        servos[alert].fail(HardwareError.OVERLOAD)
    return chain


def packet_of(raw: bytes) -> Packet:
    return next(Decoder().feed(raw))


@FAST
@given(setups, goals, st.integers(0, 20), st.integers(0, 20))
def test_goals(rows: list[dict[str, int]], values: list[int], away: int, alert: int) -> None:
    body = b"".join(
        bytes((n,)) + values[n - 1].to_bytes(4, "little", signed=True)
        for n in range(1, len(rows) + 1)
    )
    raw = encode(254, Instruction.SYNC_WRITE, bytes((116, 0, 4, 0)) + body)
    quick, slow = chain_of(rows, away, alert), chain_of(rows, away, alert)
    put = plans.GoalPlan.put
    try:
        assert quick.execute(packet_of(raw), 1000, BAUD) == []
        plans.GoalPlan.put = lambda *_: False  # type: ignore[method-assign]
        assert slow.execute(packet_of(raw), 1000, BAUD) == []
    finally:
        plans.GoalPlan.put = put  # type: ignore[method-assign]
    np.testing.assert_array_equal(quick.bank.memory, slow.bank.memory)
    np.testing.assert_array_equal(quick.bank.goal, slow.bank.goal)
    np.testing.assert_array_equal(quick.bank.max_rate, slow.bank.max_rate)
    theirs, ours = slow.goals.since(), quick.goals.since()
    assert list(zip(ours.servo_id, ours.value, strict=True)) == list(
        zip(theirs.servo_id, theirs.value, strict=True)
    )


@FAST
@given(setups, st.integers(0, 20), st.integers(0, 20), st.integers(-3, 3), st.booleans())
def test_sync_reads(
    rows: list[dict[str, int]], away: int, alert: int, velocity: int, part: bool
) -> None:
    address, length = (128, 8) if part else (126, 10)
    ids = bytes(range(1, len(rows) + 1))
    raw = encode(254, Instruction.SYNC_READ, bytes((address, 0, length, 0)) + ids)
    answers = []
    for whole in (True, False):
        chain = chain_of(rows, away, alert)
        chain.bank.velocity[:] = velocity * 0.229 / 60 * 4096
        chain.bank.position[0] = 253.0
        chain.bank.publish()
        chain.bank.heard_ns[:] = 0
        replies = chain.execute(packet_of(raw), 1000, BAUD, whole=whole)
        samples = chain.samples.since()
        answers.append(
            (
                b"".join(data for _, data in replies),
                round(sum(delay for delay, _ in replies) * 1e6),
                samples.servo_id.tolist(),
                samples.value.tolist(),
                chain.bank.heard_ns.tolist(),
            )
        )
    assert answers[0] == answers[1]
