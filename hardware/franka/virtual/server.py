"""A virtual Franka arm on the network: TCP 1337, states and commands by UDP, gripper on 1338.

Whoever hosts it waits for `filenos()` until `due_ns()`, passes what is readable to `on_readable`,
and calls `turn()` when `ready()`; a world that advances physics of its own calls `command()`, its
own step and `publish()` instead of `turn()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hardware.franka.fci import (
    COMMAND_IDS,
    COMMAND_STRUCT,
    CONNECT_REPLY,
    HEADER,
    REPLIES,
    REQUESTS,
    ROBOT_PORT,
    STATUS,
    Command,
    MotionCommand,
    Status,
    Version,
)
from hardware.franka.kinematics import HOME
from hardware.franka.limits import Model
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.clock import Clock
from hardware.franka.virtual.connection import Port
from hardware.franka.virtual.faults import Faults
from hardware.franka.virtual.gripper import VirtualGripper
from hardware.franka.virtual.motion import Motion
from hardware.franka.virtual.settings import Settings
from robot_stack.errors import RobotStackError

__all__ = ["VirtualArm"]

LINUX_X64 = (0, 0)  # architecture and system of LOAD_MODEL_LIBRARY
# An aborted motion's reply comes this many milliseconds behind the state that says why: libfranka
# looks at TCP first, and would report an abort without its errors.
ABORT_REPLY_MS = 5


class VirtualArm:
    """One arm with its hand: version 10 is an FR3, version 5 a FER.

    `body` is where the physics are. `robot_model` gives the URDF (version 10) or the model
    library (version 5) when a client asks; if it raises, the client is refused. DeviceError when
    the ports at `address` are taken.
    """

    def __init__(
        self,
        body: Body,
        *,
        version: Version = 10,
        address: str = "127.0.0.2",
        robot_model: Callable[[], bytes],
        lock_step: bool = False,
        seed: int = 0,
    ) -> None:
        self.version: Version = version
        self.address = address
        self.model: Model = "fr3" if version == 10 else "fer"
        self.body = body
        self.settings = Settings()
        self.faults = Faults(seed)
        self.clock = Clock(time.monotonic_ns(), lock_step=lock_step)
        self.milliseconds = 0  # of the robot's own time
        self._robot_model = robot_model
        self._port = Port(address, ROBOT_PORT, HEADER)
        try:
            self.gripper = VirtualGripper(body, address, self.faults)
        except BaseException:
            self._port.close()
            raise
        self.motion = Motion(body, version, self.model, self.settings)
        self._commands = {number: command for command, number in COMMAND_IDS[version].items()}
        self._answer: MotionCommand | None = None
        self._lost_answer = False
        self._delivered = 0  # id of the newest state that reached the client this millisecond
        self._move: int | None = None
        self._stop: int | None = None
        self._recovery: int | None = None
        self._outcome: tuple[int, Status] | None = None
        self._set: list[tuple[Command, int, Status]] = []

    # -- for the event loop --------------------------------------------------------------------

    def filenos(self) -> list[int]:
        """What to wait on."""
        return [*self._port.filenos(), *self.gripper.filenos()]

    @property
    def connected(self) -> bool:
        """Whether anybody is there; without, a stand-alone arm lets time stand still."""
        return self._port.connected or self.gripper.connected

    def due_ns(self) -> int:
        """When the next millisecond is due (time.monotonic_ns) if nothing arrives before."""
        return self.clock.due_ns(awaiting=self._awaiting)

    def ready(self, now_ns: int) -> bool:
        """Whether the next millisecond may begin."""
        return now_ns >= self.due_ns()

    @property
    def _awaiting(self) -> bool:
        return (
            self.motion.answering
            and self._delivered > 0
            and self._answer is None
            and not self._lost_answer
        )

    def on_readable(self, fd: int) -> None:
        """Serve one ready descriptor out of `filenos()`."""
        if self.gripper.serves(fd):
            self.gripper.on_readable(fd)
        elif self._port.owns(fd):
            was = self._port.connected
            for command, number, payload in self._port.requests():
                self._request(command, number, payload)
            if was and not self._port.connected:
                self._gone()
        else:
            self._take_commands()

    def _take_commands(self) -> None:
        size = COMMAND_STRUCT[self.version].size
        for datagram in self._port.datagrams():
            if len(datagram) != size:
                continue
            command = MotionCommand(self.version, datagram)
            # An answer to an older state is late: its millisecond is over. If that state is the
            # newest that the client has got, it will send no better one. A motion's first command
            # may come as late as it likes.
            if command.message_id != self.milliseconds and self.motion.answering:
                self._lost_answer |= command.message_id == self._delivered
                continue
            if self.faults.command_passes(self.milliseconds):
                self._answer = command
            else:
                self._lost_answer = True

    # -- one millisecond -------------------------------------------------------------------------

    def turn(self) -> None:
        """One millisecond: command, physics, state."""
        self.body.step(self.command())
        self.publish()

    def command(self) -> Any:
        """First half: torques (7,) Nm for this millisecond of physics, from what has arrived."""
        answer, self._answer, self._lost_answer = self._answer, None, False
        return self.motion.step(answer)

    def publish(self) -> None:
        """Second half: the physics are done; send the state and what is due by TCP."""
        self.milliseconds += 1
        self.motion.measured()
        self._delivered = 0
        if self._port.subscribed:
            state = self.motion.state.pack(self.milliseconds)
            now = self.milliseconds
            for number, datagram in self.faults.states(now, now, state):
                self._port.send(datagram)
                self._delivered = number
        self.clock.sent(time.monotonic_ns())
        self._conclude()
        self.gripper.publish()

    def _conclude(self) -> None:
        """Replies that follow the state which shows their reason."""
        for command, request_id, status in self._set:
            self._reply(command, request_id, status)
        self._set.clear()
        outcome = self.motion.take_outcome()
        if outcome is not None:
            aborted = outcome not in (Status.SUCCESS, Status.PREEMPTED)
            self._outcome = (self.milliseconds + (ABORT_REPLY_MS if aborted else 0), outcome)
        if self._outcome is not None and self._outcome[0] <= self.milliseconds:
            outcome, self._outcome = self._outcome[1], None
            if self._stop is not None:
                self._reply(Command.STOP_MOVE, self._stop, _stop_status(outcome))
                self._stop = None
            if self._move is not None:
                self._reply(Command.MOVE, self._move, outcome)
                self._move = None
        recovered = self.motion.take_recovery()
        if recovered is not None and self._recovery is not None:
            self._reply(Command.AUTOMATIC_ERROR_RECOVERY, self._recovery, recovered)
            self._recovery = None

    # -- requests --------------------------------------------------------------------------------

    def _request(self, number: int, request_id: int, payload: bytes) -> None:
        command = self._commands.get(number)
        if command is None or len(payload) != REQUESTS[self.version][command].itemsize:
            self._port.hang_up()  # not this protocol
            return
        request: Any = None
        if payload:
            request = np.frombuffer(payload, REQUESTS[self.version][command])[0]
        if command == Command.CONNECT:
            self._connect(request_id, int(request["version"]), int(request["udp_port"]))
        elif command == Command.MOVE:
            status = self.motion.start(request)
            if status == Status.MOTION_STARTED:
                self._move = request_id
            self._reply(command, request_id, status)
        elif command == Command.STOP_MOVE:
            self._stop_move(request_id)
        elif command == Command.AUTOMATIC_ERROR_RECOVERY:
            recovered = self.motion.recover()
            if recovered is None:
                self._recovery = request_id
            else:
                self._reply(command, request_id, recovered)
        elif command in (Command.GET_ROBOT_MODEL, Command.LOAD_MODEL_LIBRARY):
            self._send_model(command, request_id, request)
        elif self.motion.moving:
            self._reply(command, request_id, Status.NOT_POSSIBLE)
        elif command == Command.GET_CARTESIAN_LIMIT:
            self._cartesian_limit(request_id)
        else:
            # Answered behind the first state that shows it.
            self._set.append((command, request_id, self.settings.apply(command, request)))

    def _connect(self, request_id: int, version: int, udp_port: int) -> None:
        mine = self.version if self.faults.version is None else self.faults.version
        status = Status.SUCCESS if version == mine else Status.INCOMPATIBLE
        number = STATUS[self.version][Command.CONNECT][status]
        self._port.reply(
            COMMAND_IDS[self.version][Command.CONNECT], request_id, CONNECT_REPLY.pack(number, mine)
        )
        if status == Status.SUCCESS:
            self._port.subscribe(udp_port)

    def _stop_move(self, request_id: int) -> None:
        if self.motion.moving:
            self._stop = request_id
            self.motion.stop()
        else:
            self._reply(Command.STOP_MOVE, request_id, Status.SUCCESS)

    def _send_model(self, command: Command, request_id: int, request: Any) -> None:
        if command == Command.LOAD_MODEL_LIBRARY and (
            (int(request["architecture"]), int(request["system"])) != LINUX_X64
        ):
            self._reply(command, request_id, Status.ERROR)
            return
        try:
            model = self._robot_model()
        except RobotStackError as error:
            print(f"virtual Franka at {self.address}: no model for the client: {error}",
                  file=sys.stderr, flush=True)  # fmt: skip
            library = command == Command.LOAD_MODEL_LIBRARY
            self._reply(command, request_id, Status.ERROR if library else Status.NOT_POSSIBLE)
            return
        self._reply(command, request_id, Status.SUCCESS, model)

    def _cartesian_limit(self, request_id: int) -> None:
        reply = np.zeros((), REPLIES[self.version][Command.GET_CARTESIAN_LIMIT])
        reply["frame"] = np.eye(4).ravel()  # no limit is set up in this robot
        self._reply(Command.GET_CARTESIAN_LIMIT, request_id, Status.SUCCESS, reply.tobytes()[1:])

    def _reply(self, command: Command, request_id: int, status: Status, rest: bytes = b"") -> None:
        number = STATUS[self.version][command][status]
        self._port.reply(COMMAND_IDS[self.version][command], request_id, bytes([number]) + rest)

    # -- faults and ends -------------------------------------------------------------------------

    def reset(self, q: ArrayLike = HOME) -> None:
        """Switched off and on again, at rest at `q` (7,) rad with open fingers; no faults. The
        client stays connected, a motion of it is aborted."""
        self.faults.calm()
        self.clock.skipped_ns = self.clock.longest_gap_ns = 0
        self.settings.reset()
        self.body.push(None)
        self.body.place(q)
        self.gripper.reset()
        self.motion.reset()

    def half_close(self) -> None:
        """End the server's direction of TCP, and keep on sending states."""
        self._port.half_close()

    def _gone(self) -> None:
        self.motion.abandon()
        self._move = self._stop = self._recovery = self._outcome = None
        self._answer = None
        self._set.clear()

    def close(self) -> None:
        """Hang up everywhere."""
        self._port.close()
        self.gripper.close()


def _stop_status(outcome: Status) -> Status:
    """How StopMove fares when the motion that it stops ends like that."""
    if outcome in (Status.REFLEX_ABORTED, Status.EMERGENCY_ABORTED):
        return outcome
    return Status.SUCCESS
