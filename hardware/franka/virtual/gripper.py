"""The Franka hand on the network: gripper server version 3 on TCP 1338, states by UDP at 10 Hz.

Commands take as long as the fingers do and answer when they are done; only Stop is heard
meanwhile, any other command fails. Homing must have measured the stroke before a state knows the
hand's width when open; a hand that was homed before the client came (as after any earlier session)
knows it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from hardware.franka.fci import (
    GRIPPER_HEADER,
    GRIPPER_PORT,
    GRIPPER_REQUESTS,
    GRIPPER_STATE,
    GRIPPER_VERSION,
    GripperCommand,
    GripperStatus,
)
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.connection import Port
from hardware.franka.virtual.faults import Faults
from hardware.franka.virtual.scene import MAX_WIDTH

__all__ = ["VirtualGripper"]

STATE_EVERY = 100  # milliseconds
SPEED_MAX = 0.1  # m/s
FORCE_MAX = 70.0  # N
MOVE_FORCE = 30.0  # N of a move or homing; a grasp says its own
HOMING_SPEED = 0.05
AT_WIDTH = 0.001  # m: the fingers have arrived
AT_REST = 0.002  # m/s
REST_STEPS = 40  # milliseconds of standing still that count as blocked
STEPS_MAX = 10_000
TEMPERATURE = 33  # degrees Celsius

Judge = Callable[[float], GripperStatus]


@dataclass(slots=True)
class _Job:
    """What the fingers do now: targets still to reach, and who waits for it."""

    command: GripperCommand
    request_id: int
    widths: list[float]
    speed: float
    force: float
    judge: Judge
    resting: int = 0
    steps: int = 0


class VirtualGripper:
    """The hand of one virtual arm; `publish` follows each millisecond of physics."""

    def __init__(self, body: Body, address: str, faults: Faults) -> None:
        self._body, self._faults = body, faults
        self._port = Port(address, GRIPPER_PORT, GRIPPER_HEADER)
        self._job: _Job | None = None
        self._milliseconds = self._states = 0
        self.grasped = False

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._port.connected

    @property
    def busy(self) -> bool:
        """Whether the fingers carry out a command."""
        return self._job is not None

    def filenos(self) -> list[int]:
        """What to wait on."""
        return self._port.filenos()

    def serves(self, fd: int) -> bool:
        """Whether `fd` is this server's."""
        return fd in self._port.filenos()

    def on_readable(self, fd: int) -> None:
        """Serve one ready descriptor out of `filenos()`."""
        if not self._port.owns(fd):
            for _ in self._port.datagrams():
                pass  # the gripper takes no datagrams
            return
        for command, number, payload in self._port.requests():
            self._request(command, number, payload)
        if not self._port.connected:
            self._job = None

    def publish(self) -> None:
        """After a millisecond of physics: see whether the fingers have arrived; send the state."""
        self._milliseconds += 1
        job = self._job
        if job is not None:
            self._watch(job)
        if self._milliseconds % STATE_EVERY == 0:
            self._send_state()

    def _send_state(self) -> None:
        self._states += 1
        self._port.send(
            GRIPPER_STATE.pack(
                self._milliseconds & 0xFFFFFFFF,
                max(0.0, self._body.finger_width),
                MAX_WIDTH,
                self.grasped,
                TEMPERATURE,
            )
        )

    def _request(self, number: int, request_id: int, payload: bytes) -> None:
        try:
            command = GripperCommand(number)
            request = GRIPPER_REQUESTS[command].unpack(payload)
        except (ValueError, struct.error):
            self._port.hang_up()  # not this protocol
            return
        if command == GripperCommand.CONNECT:
            self._connect(request_id, *request)
        elif command == GripperCommand.STOP:
            self._stop(request_id)
        elif self._job is not None:
            self._reply(command, request_id, GripperStatus.FAIL)
        elif command == GripperCommand.HOMING:
            self.grasped = False
            self._begin(_Job(command, request_id, [0.0, MAX_WIDTH], HOMING_SPEED, MOVE_FORCE,
                             _reached(MAX_WIDTH)))  # fmt: skip
        elif command == GripperCommand.MOVE:
            width, speed = request
            if not (0.0 <= width <= MAX_WIDTH and speed > 0.0):
                self._reply(command, request_id, GripperStatus.FAIL)
                return
            self.grasped = False
            self._begin(_Job(command, request_id, [width], min(speed, SPEED_MAX), MOVE_FORCE,
                             _reached(width)))  # fmt: skip
        else:
            self._grasp(request_id, *request)

    def _connect(self, request_id: int, version: int, udp_port: int) -> None:
        fits = version == GRIPPER_VERSION
        payload = int(not fits).to_bytes(2, "little") + GRIPPER_VERSION.to_bytes(2, "little")
        self._port.reply(GripperCommand.CONNECT, request_id, payload)
        if fits:
            self._port.subscribe(udp_port)
            self._send_state()

    def _grasp(
        self, request_id: int, width: float, inner: float, outer: float, speed: float, force: float
    ) -> None:
        if not (0.0 <= width <= MAX_WIDTH and speed > 0.0 and 0.0 < force <= FORCE_MAX):
            self._reply(GripperCommand.GRASP, request_id, GripperStatus.FAIL)
            return

        def judge(found: float) -> GripperStatus:
            self.grasped = width - inner < found < width + outer
            return GripperStatus.SUCCESS if self.grasped else GripperStatus.UNSUCCESSFUL

        self.grasped = False
        # It closes until something holds the fingers, and then goes on pushing.
        self._begin(
            _Job(GripperCommand.GRASP, request_id, [0.0], min(speed, SPEED_MAX), force, judge)
        )

    def _begin(self, job: _Job) -> None:
        self._job = job
        self._body.drive_fingers(job.widths[0], job.speed, job.force)

    def _watch(self, job: _Job) -> None:
        job.steps += 1
        width = self._body.finger_width
        still = abs(self._body.finger_speed) < AT_REST
        job.resting = job.resting + 1 if still else 0
        arrived = abs(width - job.widths[0]) < AT_WIDTH and still
        if not arrived and job.resting < REST_STEPS and job.steps < STEPS_MAX:
            return
        if len(job.widths) > 1:
            del job.widths[0]
            job.resting = 0
            self._body.drive_fingers(job.widths[0], job.speed, job.force)
            return
        status = job.judge(width)
        self._job = None
        self._reply(job.command, job.request_id, status)

    def reset(self) -> None:
        """Nothing held, nothing to do; a command under way is aborted."""
        self.grasped = False
        self._abort()

    def _abort(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            self._reply(job.command, job.request_id, GripperStatus.ABORTED)

    def _stop(self, request_id: int) -> None:
        self._body.stop_fingers()
        self._abort()
        self._reply(GripperCommand.STOP, request_id, GripperStatus.SUCCESS)

    def _reply(self, command: GripperCommand, request_id: int, status: GripperStatus) -> None:
        if not self._faults.gripper_hangs:
            self._port.reply(command, request_id, int(status).to_bytes(2, "little"))

    def close(self) -> None:
        """Hang up."""
        self._port.close()


def _reached(width: float) -> Judge:
    def judge(found: float) -> GripperStatus:
        near = abs(found - width) < 2 * AT_WIDTH
        return GripperStatus.SUCCESS if near else GripperStatus.UNSUCCESSFUL

    return judge
