"""Doctor's rows for a Franka: library, kernel, network, FCI and hand, without disturbing anyone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hardware.franka import doctor
from hardware.franka.virtual.process import FrankaProcess
from robot_stack.config import load_station
from robot_stack.doctor import Check
from robot_stack.records import ring_path, tick_record
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Lifecycle

NOBODY = "127.201.1.1"  # no virtual arm chooses such an address


@pytest.fixture(autouse=True)
def _runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A socket's path has 107 characters at most: below pytest's own directories it is longer.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", directory)
        yield


def found(tmp_path: Path, options: str) -> dict[str, Check]:
    file = tmp_path / "lab.yaml"
    file.write_text(
        f"station: lab\nrobots: {{arm: {{driver: franka, falls: false, options: {{{options}}}}}}}\n"
        "groups: {arm: {robots: [arm]}}\n"
    )
    return {check.name: check for check in doctor.checks(load_station(file))}


def test_a_robot_that_listens_is_well(tmp_path: Path, arms: Callable[..., FrankaProcess]) -> None:
    rows = found(tmp_path, f"address: {arms().address}")
    assert list(rows) == ["arm library", "arm kernel", "arm network", "arm FCI", "arm hand"]
    assert {row.status for row in rows.values()} == {"ok"}
    assert "franky-control 2.0.0, robot server version 10" in rows["arm library"].found
    assert "ms there and back" in rows["arm network"].found


def test_a_robot_without_fci_is_told_how_to_activate_it(tmp_path: Path) -> None:
    rows = found(tmp_path, f"address: {NOBODY}, model: fer, gripper: null")
    assert list(rows) == ["arm library", "arm kernel", "arm network", "arm FCI"]
    assert "panda-python" in rows["arm library"].found
    assert rows["arm network"].status == "ok", "a refused connection tells the round trip as well"
    assert rows["arm FCI"].status == "fail"
    assert "activate FCI in Desk" in rows["arm FCI"].mend


def test_an_unknown_address_and_an_ordinary_kernel_fail_where_they_matter(tmp_path: Path) -> None:
    rows = found(tmp_path, "address: no-such-robot.invalid, realtime: enforce")
    assert rows["arm network"].status == "fail"
    assert "robots.arm.options.address" in rows["arm network"].mend
    if not Path("/sys/kernel/realtime").exists():
        assert rows["arm kernel"].status == "fail"
        assert "realtime: ignore" in rows["arm kernel"].mend


def test_the_robot_of_a_running_arm_process_is_left_alone(tmp_path: Path) -> None:
    record = np.zeros(1, tick_record(8))
    with RingWriter(ring_path("lab", "arm", "arm"), record.dtype, 8) as ring:
        record["t_ns"], record["lifecycle"] = time.monotonic_ns(), Lifecycle.ARMED
        record["success_rate"] = 0.97
        ring.publish(record[0])
        rows = found(tmp_path, f"address: {NOBODY}")
        assert list(rows) == ["arm library", "arm kernel", "arm robot"]
        assert "armed, 97% of commands in time" in rows["arm robot"].found
        record["lifecycle"], record["fault"] = Lifecycle.FAULT, b"reflex: joint_reflex"
        record["success_rate"] = np.nan
        ring.publish(record[0])
        row = found(tmp_path, f"address: {NOBODY}")["arm robot"]
        assert (row.status, row.mend) == ("fail", "robot-stack reset lab")
        assert "reflex: joint_reflex" in row.found
