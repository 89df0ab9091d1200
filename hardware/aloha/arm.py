"""The ALOHA arm driver: vx300s followers and wx250s leaders are configurations of this one class.

Nothing here moves an arm but ``write``, and nothing takes torque away but ``set_torque``: neither
connecting, nor disconnecting, nor recovering another servo drops it. Effort (``tau``) is in
amperes, the sum of a joint's servos, and NaN where a servo measures no current.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from hardware.aloha import registers, trajectory
from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.faults import TRIPPED, FaultWatch
from hardware.aloha.mending import Mender
from hardware.aloha.rig import Servo
from hardware.aloha.scale import Scale
from hardware.dynamixel.bus import BusState, DynamixelBus
from hardware.dynamixel.control_table import OperatingMode
from robot_stack.config import RobotConfig, Station
from robot_stack.errors import BusError, DeviceError
from robot_stack.safety.limits import ForwardKinematics
from robot_stack.spec import RobotSpec
from robot_stack.types import RobotState

__all__ = ["AlohaArm"]

Array = NDArray[np.float64]

USB_LATENCY_S = 0.001
SETUP_READ_S = 0.3
SETUP_SLACK_S = 0.1
# Between an answer and the next request the loop thinks: guard, filter, publishing, waking up.
BUS_SHARE = 0.8
# A joint that stands closer than this to its goal register is sagging under its load, not away.
SAG_TICKS = 40


class _ArmBus(DynamixelBus):
    """A bus whose answers may be later while no loop waits for them."""

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """On a busy machine a single exchange may stall; at set-up that is no reason to fail."""
        brisk = self._slack_s
        self._slack_s = self._port.slack_s = SETUP_SLACK_S
        try:
            yield
        finally:
            self._slack_s = self._port.slack_s = brisk


class AlohaArm:
    """Nine servos as seven joints: waist to wrist_rotate in rad, and the gripper as a fraction.

    The gripper is read as a fraction of finger position (a follower) or of joint angle (a
    leader), and always commanded as a fraction of joint angle: ALOHA's own convention.
    """

    def __init__(self, config: AlohaArmConfig) -> None:
        self.config = config
        self._spec = config.spec
        self._arm = config.arm
        self._ids = tuple(servo.id for servo in self._arm.servos)
        self._master_ids = tuple(servo.id for servo in self._arm.masters)
        self._scale = Scale(config)
        self._bus = _ArmBus(config.port, self._ids, config.baud, fast=config.fast_read)
        poll_s = 26 * 10.0 / config.baud + USB_LATENCY_S
        self._watch = FaultWatch(self._bus, self._arm, poll_s, config.bus_watchdog_ms / 1000.0)
        self._mender = Mender(config, self._bus, self._watch)
        self._state: BusState | None = None
        self._goals = np.zeros(len(self._master_ids), dtype=np.int32)
        self._watchdog_armed = False

    @classmethod
    def from_config(cls, config: RobotConfig, station: Station) -> AlohaArm:
        """The robot ``config`` of a station file; touches no hardware."""
        return cls(AlohaArmConfig.from_station(config, station))

    @property
    def spec(self) -> RobotSpec:
        """Joints, limits and poses, with this rig's offsets and the station's limits."""
        return self._spec

    @property
    def start_fraction(self) -> float:
        """A leader whose gripper is below this fraction is one that the operator has closed."""
        return self.config.gripper.start_fraction

    @property
    def rate_hz(self) -> float:
        """What the bus affords: a fast sync read of nine servos (23 + 134 bytes, 10 bits each),
        the adapter's latency, a follower's sync write of seven goals (49 bytes), and the time in
        which the loop thinks and the bus is idle.

        At 1 Mbaud 261 Hz for a follower and 311 Hz for a leader, which is mostly read; at 4 Mbaud
        528 and 575 Hz.
        """
        answer = len(self._ids) * 21 if self.config.fast_read is False else 8 + len(self._ids) * 14
        read = 14 + len(self._ids) + answer
        write = 14 + len(self._master_ids) * 5 if self.config.role == "follower" else 0
        return BUS_SHARE / ((read + write) * 10.0 / self.config.baud + USB_LATENCY_S)

    # -- connection --------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the port and check that the arm is the one that the station file describes.

        Torque stays as it is and nothing moves. RAM registers and, on joints without torque,
        operating modes are applied again. DeviceError says what differs and what mends it.
        """
        with self._bus.patient():
            self._bus.connect()
            try:
                self._check()
                self._prepare()
            except BaseException:
                self._bus.close()
                raise

    def _check(self) -> None:
        missing = [servo for servo in self._arm.servos if servo.id not in self._bus.found]
        if missing:
            raise DeviceError(
                f"{self._name} on {self._bus.port_name}: {', '.join(map(str, missing))} "
                f"{'does' if len(missing) == 1 else 'do'} not answer; ids that answered: "
                f"{sorted(self._bus.found)}. Check the cable before the first missing servo, the "
                "power, and with `robot-stack identify` its id and baud rate"
            )
        complaints = registers.check_models(self._bus, self.config)
        if complaints:
            raise DeviceError(
                f"{self._name} on {self._bus.port_name}: {'; '.join(complaints)}. Is it another "
                "arm's port (`robot-stack identify`)? A servo that was replaced belongs into the "
                "robot's option servo_models"
            )
        mismatches = registers.check_eeprom(self._bus, self.config)
        if mismatches:
            raise DeviceError(
                f"{self._name} on {self._bus.port_name}: {'; '.join(map(str, mismatches))}. Mend "
                "it with `robot-stack calibrate STATION --robot NAME --apply`"
            )

    def _prepare(self) -> None:
        bus = self._bus
        # An answer to every write, or nothing after this could be verified.
        bus.sync_write("status_return_level", dict.fromkeys(self._ids, 2))
        torque = registers.read_all(bus, "torque_enable")
        modes = registers.read_all(bus, "operating_mode")
        tripped = [s for s, v in registers.read_all(bus, "bus_watchdog").items() if v == TRIPPED]
        self._watch.torque = {servo_id: bool(on) for servo_id, on in torque.items()}
        self._look()
        for servo_id in tripped:
            bus.write_verified(servo_id, "bus_watchdog", 0)
        self._adopt_goals(tripped)
        bus.clear_bus_watchdog(self._ids)
        for servo in self._arm.servos:
            wanted = registers.mode(self.config, servo)
            if modes[servo.id] != wanted:
                if torque[servo.id]:
                    raise DeviceError(
                        f"{servo} on {bus.port_name} holds torque in operating mode "
                        f"{modes[servo.id]}, needs {int(wanted)} ({wanted.name.lower()}), and a "
                        "mode changes only without torque: support the arm, switch its power off "
                        "and on, and connect again"
                    )
                bus.write_verified(servo.id, "operating_mode", int(wanted))
            if wanted is OperatingMode.CURRENT_POSITION:
                registers.apply_grip_limit(bus, self.config, servo)
            registers.apply_ram(bus, servo.id, registers.ram(self.config, servo))
        self._look()  # a servo that enters position mode forgets its turns
        self._watch.latched.clear()
        self._watch.lost.clear()
        self._watchdog_armed = False
        for servo_id, error in registers.read_all(bus, "hardware_error_status").items():
            self._watch.judge(servo_id, "hardware_error_status", error)
        self._watch.pause()

    def _look(self) -> BusState:
        """Read all servos, and count whole turns anew."""
        state = self._bus.read_state(SETUP_READ_S)
        if state.missing:
            for servo_id in state.missing:  # silent for long, they are asked only now and then
                self._bus.leave_out(servo_id, False)
            state = self._bus.read_state(SETUP_READ_S)
        self._state = state
        if state.missing:
            raise BusError(
                f"servos {list(state.missing)} on {self._bus.port_name} stopped answering: check "
                "their cable and power"
            )
        self._scale.find_turns(state.position_ticks)
        return state

    def _adopt_goals(self, tripped: list[int]) -> None:
        """Go on from the servos' own goals. One that its bus watchdog has stopped away from its
        goal would go there at full speed once its goals are written again: it stays instead."""
        found = registers.read_all(self._bus, "goal_position")
        present = self._present()
        for joint, servo in enumerate(self._arm.masters):
            goal = found[servo.id]
            away = abs(goal - int(present[joint])) > SAG_TICKS
            if not self._watch.torque[servo.id] or (servo.id in tripped and away):
                goal = int(present[joint])
                if self._watch.torque[servo.id]:
                    goal = self._mender.within(servo, goal)
                    self._bus.write_verified(servo.id, "goal_position", goal)
            self._goals[joint] = goal

    def disconnect(self) -> None:
        """Close the port; torque and goals stay. Safe to call twice."""
        if self._bus.connected:
            # A farewell, not a stall: the arm goes on holding its goals and its grip.
            with contextlib.suppress(DeviceError):
                self._bus.sync_write("bus_watchdog", dict.fromkeys(self._ids, 0))
            self._bus.close()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    @property
    def _name(self) -> str:
        return f"ALOHA {self.config.role} ({self.config.model})"

    # -- the loop ----------------------------------------------------------------------------

    def read(self, deadline_s: float) -> RobotState:
        """Measured state; one sync read. BusError when nothing answered within ``deadline_s``."""
        started_ns = time.monotonic_ns()
        state = self._state = self._bus.read_state(deadline_s)
        if not self._watchdog_armed:  # from the loop's first turn on, so that its start may take
            steps = -(-self.config.bus_watchdog_ms // 20)
            self._bus.sync_write("bus_watchdog", dict.fromkeys(self._ids, steps))
            self._watchdog_armed = True
        self._watch.observe(state, started_ns)
        q, dq = self._scale.measured(state.position_ticks, state.velocity_raw)
        return RobotState(
            t_ns=state.t_ns,
            q=q,
            dq=dq,
            tau=self._scale.current(state.current_raw),
            age_s=state.age_s[self._scale.masters],
        )

    def request(self) -> None:
        """Send the sync read whose answer the next ``read`` takes up."""
        with contextlib.suppress(BusError):  # that read tells
            self._bus.request_state()

    def write(self, target: Array) -> Array:
        """Send one target (7,); one sync write. Returns (7,) what was sent, rounded to servo
        counts; for joints without torque, which are skipped, where they are."""
        target = np.asarray(target, dtype=np.float64)
        if target.shape != (self._spec.dof,) or not np.isfinite(target).all():
            raise DeviceError(f"{self._name}: a target is 7 finite numbers, not {target}")
        goals = self._scale.goals(target)
        held = np.array([self._watch.torque[servo_id] for servo_id in self._master_ids])
        if held.any():
            ids = tuple(s for s, on in zip(self._master_ids, held, strict=True) if on)
            self._bus.write_goals(goals[held], ids)
        self._goals = np.where(held, goals, self._present()).astype(np.int32)
        return self._scale.targets_of(self._goals)

    def _present(self) -> NDArray[np.int32]:
        assert self._state is not None
        present: NDArray[np.int32] = self._state.position_ticks[self._scale.masters]
        return present

    def halt(self) -> Array | None:
        """Servos go no farther than they are written to."""
        return None

    def held(self) -> Array:
        """The targets (7,) that the servos hold, and where joints without torque are; no bus
        traffic. A gripper is given as it is commanded, as a fraction of joint angle."""
        goals = np.where(self.torque(), self._goals, self._present()).astype(np.int32)
        return self._scale.targets_of(goals)

    def torque(self) -> NDArray[np.bool_]:
        """Which joints (7,) are under torque, as their first servo last said."""
        return np.array([self._watch.torque[servo_id] for servo_id in self._master_ids])

    def faults(self) -> str | None:
        """Latched faults in words, for example ``servo 9 (gripper): overload``."""
        return self._watch.text()

    def path(self, pose: Literal["home", "sleep"], start: Array, dt_s: float) -> Array:
        """Targets (H, 7), ``dt_s`` apart, from ``start`` to a named pose in an order that keeps
        the arm off the table; the gripper stays as it is."""
        way = trajectory.home if pose == "home" else trajectory.sleep
        return way(self._spec, start, dt_s)

    def forward_kinematics(self) -> ForwardKinematics:
        """Joints (7,) to the fingertips (3,) in m in the base frame, by gym-aloha's model."""
        from hardware.worlds.collision import end_effector  # MuJoCo: only where a box is asked for

        return end_effector("left")

    # -- torque ------------------------------------------------------------------------------

    def set_torque(self, joints: Sequence[bool], on: bool) -> None:
        """Switch torque of the marked joints, shadows with them. On: the goal becomes the present
        position first. DeviceError when a joint stands too far outside its limits for that."""
        with self._bus.patient():
            self._set_torque([j for j, marked in enumerate(joints) if marked], on)
        self._watch.pause()

    def _set_torque(self, chosen: list[int], on: bool) -> None:
        servos = [servo for joint in chosen for servo in self._arm.of_joint(joint)]
        ids = tuple(servo.id for servo in servos)
        if on:
            fresh = [s for s in servos if s.shadow_of is None and not self._watch.torque[s.id]]
            for servo in fresh:
                self._remember(servo, self._mender.goal_to_present(servo))
            self._bus.torque(ids, True)
            self._watch.torque.update(dict.fromkeys(ids, True))
            # A servo forgets its turns when torque comes on in position mode.
            self._look()
        else:
            # Before, not after: should it fail halfway, these joints are no longer commanded.
            self._watch.torque.update(dict.fromkeys(ids, False))
            self._bus.torque(ids, False)
        self._watch.lost.difference_update(ids)

    # -- recovery ----------------------------------------------------------------------------

    def recover(self) -> None:
        """Mend what ``faults`` reports, one servo at a time (about 0.5 s each); all others hold.

        DeviceError names what could not be mended. The master of a shoulder or elbow pair is
        never rebooted while its shadow holds: the shadow obeys the same packet, and the arm would
        drop.
        """
        with self._bus.patient():
            # Nobody speaks to the others meanwhile.
            self._bus.sync_write("bus_watchdog", dict.fromkeys(self._ids, 0))
            self._watchdog_armed = False
            try:
                for servo in self._arm.servos:
                    if servo.id in self._watch.latched:
                        self._remember(servo, self._mender.mend(servo))
                self._look()
            finally:
                self._watch.pause()

    def _remember(self, servo: Servo, goal: int | None) -> None:
        if goal is not None and servo.shadow_of is None:
            self._goals[servo.joint] = goal
