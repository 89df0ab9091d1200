"""Processes that stand for a station's arms and cameras, to measure recorders without a robot."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Self

import numpy as np

from hardware.cameras.test_pattern import TestPatternCamera
from robot_stack.realtime import setup, sleep_until
from robot_stack.records import frame_record, ring_path, tick_record
from robot_stack.shared_memory import RingWriter, runtime_dir
from robot_stack.spec import CameraSpec, JointSpec, RobotSpec
from robot_stack.types import Lifecycle, Source
from server.control.camera_process import ring_slots

__all__ = ["ARM", "Cameras", "arms", "camera_specs", "run_arms", "spawn", "station", "stop"]

ARM_HZ = 500.0
ARM_SECONDS = 30.0  # history in the ring, as a real arm process keeps it
DOF = 7
PRODUCER_PRIORITY = 60
START_S = 60.0

ARM = RobotSpec(
    embodiment="synthetic",
    joints=tuple(JointSpec(f"joint_{i}", "rad", -3.0, 3.0, 2.0, 20.0, 0.5) for i in range(DOF)),
    home=(0.0,) * DOF,
    sleep=(0.0,) * DOF,
)


def run_arms(station: str, names: Sequence[str], hz: float = ARM_HZ) -> None:
    """Publish ticks for all ``names`` until SIGTERM: joint 0 carries the tick's number."""
    running = True

    def end(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, end)
    slots = round(hz * ARM_SECONDS)
    rings = [RingWriter(ring_path(station, "arm", name), tick_record(DOF), slots) for name in names]
    record = np.zeros(1, tick_record(DOF))[0]
    record["lifecycle"], record["source"], record["token"] = Lifecycle.ARMED, Source.DEMO, 1
    record["command_t_ns"] = record["chunk_id"] = record["chunk_index"] = -1
    record["observation_t_ns"] = -1
    record["torque"], record["distance"] = 1, np.nan
    setup(PRODUCER_PRIORITY)  # devices don't wait for this machine's other processes
    due, tick = time.monotonic_ns(), 0
    while running:
        now = time.monotonic_ns()
        record["t_ns"], record["tick"], record["lateness_ns"] = now, tick, now - due
        for field in ("q", "asked", "sent"):
            record[field] = tick
        record["sent_t_ns"] = now
        for ring in rings:
            ring.publish(record)
        tick += 1
        due += round(1e9 / hz)
        sleep_until(due)
    for ring in rings:
        ring.close()


class _Camera(TestPatternCamera):
    """A test-pattern camera whose clock can start after its texture was made."""

    def begin(self, limit: int, start_t_ns: int) -> None:
        self._limit, self._start_t_ns = limit, start_t_ns


def _run_camera(station: str, spec: CameraSpec, limit: int, go: Connection) -> None:
    """Make texture and ring, which takes time, and only then wait to hear when frame 0 is due."""
    path = ring_path(station, "camera", spec.name)
    camera = _Camera(spec)
    camera.connect()
    record = frame_record(spec.width, spec.height)
    with RingWriter(path, record, ring_slots(spec, path.parent), camera.meta) as ring:
        setup(PRODUCER_PRIORITY)  # devices don't wait for this machine's other processes
        go.send("ready")
        camera.begin(limit, go.recv())
        while ring.count < limit:
            frame = camera.read(0.1)
            if frame is not None:
                with ring.writing() as slot:
                    slot["t_ns"], slot["seq"] = frame.t_ns, frame.seq
                    slot["image"][...] = frame.image
        go.poll(None)  # the ring stays until the benchmark has read it


def camera_specs(count: int, height: int, width: int, fps: float) -> dict[str, CameraSpec]:
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    chosen = [*names, *(f"cam_{i}" for i in range(len(names), count))][:count]
    return {name: CameraSpec(name, width, height, fps) for name in chosen}


def spawn(target: object, *args: object) -> SpawnProcess:
    """Start ``target(*args)`` in a fresh interpreter."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)  # type: ignore[arg-type]
    process.start()
    return process


def stop(processes: Iterable[SpawnProcess]) -> None:
    """SIGTERM, and SIGKILL for what does not end."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def arms(station: str, names: Sequence[str], hz: float = ARM_HZ) -> Iterator[None]:
    """Arms that tick while the block runs."""
    process = spawn(run_arms, station, tuple(names), hz)
    try:
        yield
    finally:
        stop([process])


@contextmanager
def station(kind: str) -> Iterator[str]:
    """The name of a station of this process alone; its shared memory is removed in the end."""
    name = f"bench-{kind}-{os.getpid()}"
    try:
        yield name
    finally:
        shutil.rmtree(runtime_dir(name))


class Cameras:
    """Test-pattern cameras in processes of their own, of ``limit`` frames each.

    They are ready when the block is entered, and produce once ``start`` says when frame 0 is due.
    """

    def __init__(self, name: str, specs: Sequence[CameraSpec], limit: int) -> None:
        self._pipes = []
        self.processes = []
        for spec in specs:
            here, there = multiprocessing.get_context("spawn").Pipe()
            self._pipes.append(here)
            self.processes.append(spawn(_run_camera, name, spec, limit, there))
            there.close()

    def __enter__(self) -> Self:
        for pipe in self._pipes:
            if not pipe.poll(START_S) or pipe.recv() != "ready":
                stop(self.processes)
                raise RuntimeError(f"a test-pattern camera did not start within {START_S:g} s")
        return self

    def start(self, start_t_ns: Sequence[int]) -> None:
        """Frame 0 of each camera is due at its monotonic time."""
        for pipe, start in zip(self._pipes, start_t_ns, strict=True):
            pipe.send(start)

    def __exit__(self, *_: object) -> None:
        stop(self.processes)
