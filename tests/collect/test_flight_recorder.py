"""The flight recorder: what it dumps, when it does, and when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect import jpeg
from collect.flight_process import flight_config
from collect.flight_recorder import FlightConfig, FlightRecorder
from collect.recorder import RecordedRobot
from robot_stack.cli import main
from robot_stack.config import load_station
from robot_stack.episode import Episode, check
from robot_stack.spec import CameraSpec
from robot_stack.types import Lifecycle
from tests.collect.live_rings import SPEC, Cell, pictured

HIGH = CameraSpec("cam_high", 64, 48, 20.0)


class Flight:
    """A cell without recording, and a flight recorder beside it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.cell = Cell(directory, [HIGH])
        settings = {"seconds": 3.0, "after_s": 0.2, "free_space_floor_bytes": 0}
        settings |= {"cameras": {"cam_high": HIGH}} | options
        self.recorder = FlightRecorder(
            FlightConfig(
                station=self.cell.station,
                directory=directory,
                robots=tuple(RecordedRobot(name, SPEC) for name in self.cell.arms),
                **settings,
            )
        )
        self.dumps: list[Path] = []

    def run(self, seconds: float, until: int = 1 << 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.dumps) < until:
            self.cell.advance()
            path = self.recorder.poll()
            if path is not None:
                self.dumps.append(path)
            time.sleep(0.01)


@pytest.fixture
def make_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Flight]]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "runtime"))
    flights: list[Flight] = []

    def make(**options: Any) -> Flight:
        flights.append(Flight(tmp_path / "data", **options))
        return flights[-1]

    yield make
    for flight in flights:
        flight.cell.close()


def set_fault(tick: Any) -> None:
    tick["fault"], tick["lifecycle"] = b"servo 9: overload", Lifecycle.FAULT


def set_stopped(tick: Any) -> None:
    tick["lifecycle"] = Lifecycle.STOPPED


def test_a_fault_is_dumped_with_what_went_before_it(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight()
    flight.run(1.0)
    assert flight.dumps == []
    flight.cell.arms["left"].change = set_fault
    faulted_ns = time.monotonic_ns()
    flight.run(5.0, until=1)
    (path,) = flight.dumps
    assert path.parent.name == "flight"
    assert path.name.endswith("Z-left-servo-9-overload.hdf5")
    assert [p.message for p in check(path) if p.severity == "error"] == []
    with Episode.open(path) as episode:
        assert episode.metadata.ended == "flight"
        assert episode.metadata.extra["reason"] == "servo 9: overload"
        assert [event.text for event in episode.events] == ["left: servo 9: overload"]
        for name in ("left", "right"):
            log = episode.log(name)
            assert (np.diff(log["tick"]) == 1).all()
            assert faulted_ns - log["t_ns"][0] > 0.8e9  # the time before
            assert log["t_ns"][-1] - faulted_ns > 0.15e9  # and what followed
        faulty = episode.log("left")["lifecycle"] == Lifecycle.FAULT
        assert faulty.any()
        assert not faulty.all()
        seqs = episode.frame_seq("cam_high")
        shown = np.flatnonzero(seqs >= 0)
        assert len(set(seqs[shown])) >= 2
        for row in shown:
            image = episode.image("cam_high", int(row), jpeg.decode)
            assert pictured(image) == (0, seqs[row] % 32)
        assert not np.isnan(episode.qpos[-1]).any()


def test_without_cameras_a_dump_has_the_ticks_alone(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight(cameras={})
    flight.run(0.5)
    flight.cell.arms["left"].change = set_fault
    flight.run(5.0, until=1)
    (path,) = flight.dumps
    assert [p.message for p in check(path) if p.severity == "error"] == []
    with Episode.open(path) as episode:
        assert list(episode.cameras) == []
        assert len(episode.log("left")) > 50
        assert not np.isnan(episode.qpos[-1]).any()


@pytest.mark.parametrize(("line", "kept"), [("", True), ("  flight_cameras: false\n", False)])
def test_a_station_says_whether_its_dumps_have_pictures(
    line: str, kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "configs/aloha_virtual.yaml").read_text()
    file = tmp_path / "cell.yaml"
    file.write_text(text.replace("\nrecording:\n", f"\nrecording:\n{line}"))
    station = load_station(file)
    config = flight_config(station)
    assert set(config.cameras) == (set(station.cameras) if kept else set())
    assert len(station.cameras) > 0
    assert {robot.name for robot in config.robots} == set(station.robots)
    # Where the public drives they should have none; who runs it is told before all else.
    assert main(["crowd", "station", str(file), "--outbox", str(tmp_path / "outbox")]) == 1
    told = capsys.readouterr()
    assert ("flight_cameras: false" in told.out) is kept
    assert "not paired" in told.err


def test_a_stop_is_dumped_and_a_latched_one_only_once(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight(quiet_s=0.0)
    flight.run(0.3)
    flight.cell.arms["right"].change = set_stopped
    flight.run(1.5)
    assert [path.name.partition("Z-")[2] for path in flight.dumps] == ["right-stopped.hdf5"]


def test_a_dead_arm_process_is_dumped(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight()
    flight.run(0.3)
    flight.cell.arms["left"].advance = lambda now: None  # type: ignore[method-assign]
    flight.run(5.0, until=1)
    (path,) = flight.dumps
    assert "left-no-tick" in path.name
    with Episode.open(path) as episode:
        assert len(episode.log("left")) > 50


def test_a_successor_in_fault_is_dumped_with_its_predecessors_ticks(
    make_flight: Callable[..., Flight],
) -> None:
    flight = make_flight()
    flight.run(0.5)
    arm = flight.cell.arms["left"]
    before = arm.ticks
    arm.change = set_fault
    arm.restart()
    flight.run(5.0, until=1)
    with Episode.open(flight.dumps[0]) as episode:
        log = episode.log("left")
        assert (log["tick"] < before).sum() > 50
        assert (log["lifecycle"] == Lifecycle.FAULT).any()


def test_an_orderly_shutdown_is_no_fault(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight()
    flight.run(0.3)
    arm = flight.cell.arms["left"]
    arm.advance = lambda now: None  # type: ignore[method-assign]
    arm.ring.close()
    flight.run(1.5)
    assert flight.dumps == []
    arm.ring = arm.open()


def test_what_was_wrong_from_the_start_is_not_dumped(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight()
    flight.cell.arms["left"].change = set_stopped
    time.sleep(0.02)
    flight.run(0.6)
    assert flight.dumps == []


def test_dumps_are_limited_in_rate_number_and_space(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight(quiet_s=0.0, keep=2, after_s=0.0, seconds=0.5)
    flight.run(0.2)
    arm = flight.cell.arms["left"]
    for i in range(4):
        arm.change = lambda tick, i=i: tick.__setitem__("fault", f"fault {i}".encode())  # type: ignore[misc]
        flight.run(5.0, until=i + 1)
    kept = sorted(p.name.partition("Z-")[2] for p in flight.recorder.directory.glob("*.hdf5"))
    assert kept == ["left-fault-2.hdf5", "left-fault-3.hdf5"]


def test_a_second_fault_soon_after_the_first_is_not_dumped(
    make_flight: Callable[..., Flight],
) -> None:
    flight = make_flight(quiet_s=60.0, after_s=0.0)
    flight.run(0.2)
    flight.cell.arms["left"].change = set_fault
    flight.run(5.0, until=1)
    flight.cell.arms["right"].change = set_fault
    flight.run(0.5)
    assert len(flight.dumps) == 1


def test_a_full_disk_is_left_alone(make_flight: Callable[..., Flight]) -> None:
    flight = make_flight(free_space_floor_bytes=1 << 60)
    flight.run(0.2)
    flight.cell.arms["left"].change = set_fault
    flight.run(0.6)
    assert flight.dumps == []
    assert list(flight.recorder.directory.iterdir()) == []
