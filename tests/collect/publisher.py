"""A station's rings, filled at the rates of arms and cameras: what a recorder sees of one.

As a program: `python -m tests.collect.publisher STATION_FILE` publishes until it is terminated and
prints `ready` when everything is there. Lines on its standard input are told to the first robot:
`fault TEXT` or `armed`.
"""

from __future__ import annotations

import select
import sys
import time
from typing import Any

import numpy as np

from robot_stack.config import Station, load_station
from robot_stack.records import (
    LEASE,
    frame_record,
    lease_path,
    ring_path,
    tick_record,
    world_record,
)
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Lifecycle, Source

DOF = 7
TICK_NS = 5_000_000


class Publisher:
    """Publishes ticks, frames and world states that are due whenever ``advance`` is called."""

    def __init__(self, station: Station) -> None:
        name = station.station
        self.station = station
        self.arms = {
            robot: RingWriter(ring_path(name, "arm", robot), tick_record(DOF), 2048)
            for robot in station.robots
        }
        self.cameras = {
            camera: RingWriter(
                ring_path(name, "camera", camera), frame_record(spec.width, spec.height), 32
            )
            for camera, spec in station.cameras.items()
        }
        self.world = RingWriter(ring_path(name, "world", "world"), world_record(9, 7), 64)
        self.lease = RingWriter(lease_path(name, "followers"), LEASE, 4)
        self.lease.publish((41, time.monotonic_ns() + 3600 * 10**9, 2, b"teleop"))
        self.fault = b""
        self.success = False
        self.began_ns = time.monotonic_ns()
        self.ticks = 0
        self.frames = dict.fromkeys(self.cameras, 0)

    def advance(self) -> None:
        elapsed = time.monotonic_ns() - self.began_ns
        while self.ticks * TICK_NS <= elapsed:
            for number, (_, ring) in enumerate(self.arms.items()):
                ring.publish(self._tick(self.began_ns + self.ticks * TICK_NS, first=number == 0))
            state = (self.began_ns + self.ticks * TICK_NS, 0.0, np.arange(7.0), 2.0, self.success)
            self.world.publish(state)
            self.ticks += 1
        for name, ring in self.cameras.items():
            period = int(1e9 / self.station.cameras[name].fps)
            while self.frames[name] * period <= elapsed:
                with ring.writing() as record:
                    record["t_ns"] = self.began_ns + self.frames[name] * period
                    record["seq"] = self.frames[name]
                    record["image"] = self.frames[name] % 200
                self.frames[name] += 1

    def _tick(self, t_ns: int, *, first: bool) -> Any:
        tick = np.zeros((), tick_record(DOF))
        tick["t_ns"], tick["tick"] = t_ns, self.ticks
        tick["q"] = np.sin(t_ns / 1e9 + np.arange(DOF)) * 0.3
        tick["asked"] = tick["sent"] = tick["rest"] = tick["q"] + 0.01
        tick["source"], tick["token"] = Source.DEMO, 41
        tick["torque"], tick["distance"] = 1, np.nan
        tick["lifecycle"] = Lifecycle.ARMED
        if first and self.fault:
            tick["lifecycle"], tick["fault"], tick["stop"] = Lifecycle.FAULT, self.fault, 3
        return tick

    def close(self) -> None:
        for ring in (*self.arms.values(), *self.cameras.values(), self.world, self.lease):
            ring.close(unlink=True)


def main() -> None:
    publisher = Publisher(load_station(sys.argv[1]))
    publisher.advance()
    print("ready", flush=True)
    while True:
        publisher.advance()
        if select.select([sys.stdin], [], [], 0.004)[0]:
            words = sys.stdin.readline().strip().partition(" ")
            if not words[0]:
                return
            publisher.fault = words[2].encode() if words[0] == "fault" else b""


if __name__ == "__main__":
    main()
