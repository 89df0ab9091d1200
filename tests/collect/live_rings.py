"""Arms and cameras of a station in this process: publishes what is due whenever it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.recorder import RecordedRobot, Recorder, RecorderConfig, SavedEpisode
from robot_stack.records import frame_record, ring_path, tick_record, world_record
from robot_stack.shared_memory import RingWriter
from robot_stack.spec import CameraSpec, JointSpec, RobotSpec
from robot_stack.types import Lifecycle, Source

DOF = 3
TICK_NS = 4_000_000
SPEC = RobotSpec(
    embodiment="test_arm",
    joints=tuple(JointSpec(f"j{i}", "rad", -3.0, 3.0, 2.0, 20.0, 0.5) for i in range(DOF)),
    home=(0.0,) * DOF,
    sleep=(0.0,) * DOF,
)


def picture(camera: int, seq: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """An image that says which camera and frame it is: a grey level each, flat enough for JPEG."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = 40 * camera + 20
    image[height // 2 :] = (seq * 8) % 256
    return image


def pictured(image: NDArray[np.uint8]) -> tuple[int, int]:
    """(camera, sequence number modulo 32) of a ``picture`` after JPEG."""
    half = image.shape[0] // 2
    camera = round((float(image[4 : half - 4].mean()) - 20) / 40)
    return camera, round(float(image[half + 4 : -4].mean()) / 8) % 32


class Arm:
    """One arm's ring. ``change`` edits each tick before it is published."""

    def __init__(self, station: str, name: str) -> None:
        self.path = ring_path(station, "arm", name)
        self.change: Callable[[Any], None] = lambda tick: None
        self.ticks = 0
        self.next_ns = time.monotonic_ns()
        self.ring = self.open()

    def open(self) -> RingWriter:
        return RingWriter(self.path, tick_record(DOF), 512)

    def restart(self) -> None:
        """The arm process was killed and another takes its place."""
        self.ring.close()
        self.ring = self.open()
        self.next_ns = time.monotonic_ns()

    def advance(self, now: int) -> None:
        while self.next_ns <= now:
            tick = np.zeros(1, tick_record(DOF))[0]
            tick["t_ns"], tick["tick"] = self.next_ns, self.ticks
            tick["q"], tick["dq"], tick["tau"] = self.ticks, 1, 2
            tick["asked"], tick["sent"] = self.ticks + 0.25, self.ticks + 0.5
            tick["lifecycle"], tick["source"] = Lifecycle.ARMED, Source.DEMO
            tick["token"], tick["chunk_id"], tick["chunk_index"] = 7, -1, -1
            tick["observation_t_ns"] = -1
            tick["applied"] = tick["target_age_s"] = tick["success_rate"] = np.nan
            tick["torque"] = 1
            self.change(tick)
            self.ring.publish(tick)
            self.ticks += 1
            self.next_ns += TICK_NS


class Camera:
    """One camera's ring; set ``alive`` False and it stops, as a dead process does."""

    def __init__(self, station: str, index: int, spec: CameraSpec, slots: int = 128) -> None:
        self.path = ring_path(station, "camera", spec.name)
        self.index, self.spec, self.slots = index, spec, slots
        self.alive = True
        self.seq = 0
        self.published: list[int] = []
        self.period_ns = round(1e9 / spec.fps)
        self.next_ns = time.monotonic_ns() + index * 3_000_000
        self.ring = self.open()

    def open(self) -> RingWriter:
        record = frame_record(self.spec.width, self.spec.height, depth=self.spec.depth)
        return RingWriter(self.path, record, self.slots, {"serial": f"cam{self.index}"})

    def restart(self) -> None:
        self.ring.close()
        self.ring = self.open()
        self.seq = 0
        self.next_ns = time.monotonic_ns()

    def advance(self, now: int) -> None:
        while self.next_ns <= now:
            if self.alive:
                with self.ring.writing() as record:
                    record["t_ns"], record["seq"] = self.next_ns, self.seq
                    record["image"] = picture(
                        self.index, self.seq, self.spec.height, self.spec.width
                    )
                    if self.spec.depth:
                        record["depth"] = self.seq + 1000
                self.published.append(self.next_ns)
                self.seq += 1
            self.next_ns += self.period_ns


class Cell:
    """Two arms, some cameras and (optionally) a world, with a recorder beside them."""

    def __init__(
        self,
        directory: Path,
        cameras: Iterable[CameraSpec],
        *,
        world: bool = False,
        spec: RobotSpec = SPEC,
        **options: Any,
    ) -> None:
        self.station = "cell"
        specs = {spec.name: spec for spec in cameras}
        self.arms = {name: Arm(self.station, name) for name in ("left", "right")}
        self.cameras = {
            name: Camera(self.station, index, spec)
            for index, (name, spec) in enumerate(specs.items())
        }
        self.world = None
        if world:
            path = ring_path(self.station, "world", "world")
            self.world = RingWriter(path, world_record(4, 3), 256)
        self.config = RecorderConfig(
            station=self.station,
            directory=directory,
            robots=tuple(RecordedRobot(name, spec, info={"serial": name}) for name in self.arms),
            cameras=specs,
            world=world,
            **{"free_space_floor_bytes": 0, **options},
        )
        self.advance()
        self.recorder = Recorder(self.config)

    def advance(self, ahead_ns: int = 0) -> None:
        now = time.monotonic_ns() + ahead_ns
        for source in (*self.arms.values(), *self.cameras.values()):
            source.advance(now)
        if self.world is not None:
            self.world.publish((now, np.zeros(4), np.full(3, now / 1e9), 0.5, 1))

    def run(self, seconds: float, *, each: Callable[[], None] | None = None) -> Any:
        """Let the cell live; returns the episode if the recorder ended it by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.advance()
            saved = self.recorder.poll()
            if saved is not None:
                return saved
            if each is not None:
                each()
            time.sleep(0.004)
        return None

    def stop(self, **labels: Any) -> SavedEpisode:
        """Stop recording; the devices are some ticks ahead, since nothing else moves them on."""
        self.advance(ahead_ns=20_000_000)
        return self.recorder.stop(**labels)

    def close(self) -> None:
        self.recorder.close()
        for source in (*self.arms.values(), *self.cameras.values()):
            source.ring.close()
        if self.world is not None:
            self.world.close()
