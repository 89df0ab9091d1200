"""The arm process: read, pick the command, guard, filter, write, publish; at the bus's own rate.

This loop is the only place that writes to a robot, and every target passes the SafetyFilter on
its way. It runs no second Python thread, talks through shared memory alone, and leaves torque as
it is whenever it ends, so that neither a restart nor a crash drops an arm.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time

import numpy as np
from numpy.typing import NDArray

from robot_stack import registry
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError, DeviceError, RobotStackError
from robot_stack.interfaces import CollisionGuard, PoseRobot, Robot
from robot_stack.realtime import Rate, setup, sleep_until
from robot_stack.records import ring_path, tick_record
from robot_stack.safety.filter import SafetyFilter
from robot_stack.safety.limits import WorkspaceBox
from robot_stack.shared_memory import Flag, RingWriter
from robot_stack.types import (
    CommandMode,
    Difference,
    Lifecycle,
    RobotState,
    Source,
    StopCategory,
)

from .child_output import print_or_go_on
from .chunk_buffer import ChunkBuffer
from .inbox import Inbox
from .orders import Orders
from .peers import Peers
from .poses import POSE, PoseFollower

__all__ = ["ArmProcess", "main"]

HISTORY_S = 32.0  # the flight recorder reads the last 30 s from the ring
SILENCE_S = 0.1  # a bus that does not answer for this long is a fault
RECONNECT_S = 0.5
STOP_FILE_TICKS = 128
ANSWER_SHARE = 0.4  # of a period is waited for an answer that is not there yet
LEAD = 1.3  # how long before a turn its answer is asked for, in periods of the fastest loop
STANDSTILL = 1e-9  # change of the sent position between ticks that counts as standing still


class ArmProcess:
    """One robot's loop. ``run`` returns when a SHUTDOWN order or SIGTERM ends it."""

    def __init__(self, station: Station, name: str, *, after_crash: bool = False) -> None:
        self.station = station
        self.name = name
        self.config = station.robots[name]
        self.group = station.group_of(name)
        self.robot: Robot = registry.load("robot", self.config.driver).from_config(
            self.config, station
        )
        self.spec = self.robot.spec
        specs = _group_specs(station, self.group.robots)
        start = 0
        for robot in self.group.robots[: self.group.robots.index(name)]:
            start += specs[robot]
        self.rate_hz = self.config.rate_hz or self.robot.rate_hz
        self.period_s = 1.0 / self.rate_hz
        self._lead_ns = int(LEAD * 1e9 / self.robot.rate_hz)
        dof = self.spec.dof
        self._silence_s = self.spec.limits("silence_s")
        self.filter = SafetyFilter(self.spec, self.period_s, workspace=self._workspace())
        self.buffer = ChunkBuffer(dof, stale_s=self.group.stale_s)
        self.poses: PoseFollower | None = None
        if isinstance(self.robot, PoseRobot):
            self.poses = PoseFollower(self.robot.inverse_kinematics(), self.period_s)
        self.inbox = Inbox(
            station.station,
            self.group.name,
            slice(start, start + dof),
            self.buffer,
            poses=self.poses is not None,
        )
        peers = [robot for robot in self.group.robots if robot != name]
        self.peers = Peers(station.station, peers, self.group.peer_timeout_s)
        self.guard: CollisionGuard | None = None
        if self.group.guard is not None:
            if not peers:
                raise ConfigError(
                    f"groups.{self.group.name}.guard: a collision guard needs the group's other "
                    f"robot, {name} is alone in it"
                )
            index = self.group.robots.index(name)
            self.guard = registry.load("guard", self.group.guard).for_robot(index)
        self.stop = Flag(ring_path(station.station, "stop", self.group.name))
        self.orders = Orders(self)
        self.lifecycle = Lifecycle.STARTING
        self.fault = ""
        self.connected = False
        self.ended = False
        self.retries = 0
        self.tick = 0
        self.state = RobotState(
            t_ns=time.monotonic_ns(),
            q=np.full(dof, math.nan),
            dq=np.full(dof, math.nan),
            tau=np.full(dof, math.nan),
            age_s=np.full(dof, math.inf),
        )
        self.sent: NDArray[np.float64] = np.full(dof, math.nan)
        self.rest = self.sent
        self.sent_t_ns = -1
        self.torque: NDArray[np.bool_] = np.zeros(dof, dtype=bool)
        self._asked = np.full(dof, math.nan)
        self._mode = CommandMode.JOINT_POSITION
        self._asked_pose = np.full(POSE, math.nan)
        self._difference = Difference.NONE
        self._heard_s = self._asked_s = time.monotonic()
        self._silent_s = 0.0  # without an answer, of the time in which this process was awake
        self._retry_at_s = 0.0
        self._refused = ""  # why the latest attempt to connect failed, while there is no connection
        self._chunk = (-1, -1, -1)
        self._after_crash = after_crash
        self.standing = True
        self._stepped_s = time.monotonic()
        self._distance = math.nan
        self._others: NDArray[np.float64] | None = None
        self._record = np.zeros(1, tick_record(dof))
        self._ring = RingWriter(
            ring_path(station.station, "arm", name),
            self._record.dtype,
            int(HISTORY_S * self.rate_hz),
            meta={
                "robot": name,
                "group": self.group.name,
                "embodiment": self.spec.embodiment,
                "joints": list(self.spec.names),
                "units": [joint.unit for joint in self.spec.joints],
                "rate_hz": self.rate_hz,
            },
        )

    def _workspace(self) -> WorkspaceBox | None:
        box = self.config.workspace
        if box is None:
            return None
        return WorkspaceBox(
            self.robot.forward_kinematics(),
            [-math.inf if side is None else side for side in box.lower],
            [math.inf if side is None else side for side in box.upper],
            box.slow_m,
        )

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
        report = setup(self.config.priority, self.config.cpu)
        print(f"{self.name}: {self.rate_hz:.0f} Hz, {report}", flush=True)
        rate = Rate(self.rate_hz)
        while not self.ended:
            lateness_ns = rate.wait()
            woke_ns = time.monotonic_ns()
            difference, distance = self.turn()
            self._publish(difference, distance, lateness_ns, rate.overruns, woke_ns)
            if self.connected:
                # As late as the bus allows: the state is then the freshest at the next turn.
                sleep_until(rate.deadline_ns - self._lead_ns)
                self.robot.request()
        self.lifecycle = Lifecycle.ENDED
        self._publish(Difference.NONE, math.nan, 0, rate.overruns, time.monotonic_ns())
        self.robot.disconnect()
        self._ring.close()

    def _on_signal(self, *_: object) -> None:
        self.ended = True

    def turn(self) -> tuple[Difference, float]:
        """One tick: returns why sent differs from asked, and the guard's distance."""
        self._asked[:] = math.nan
        self._chunk = (-1, -1, -1)
        if self._mode is CommandMode.EE_POSE:
            self._asked_pose[:] = math.nan
        if not self.connected and not self._connect():
            self.orders.take()
            return Difference.NOT_WRITTEN, math.nan
        self._read()
        now_ns = time.monotonic_ns()
        self._watch(now_ns)
        self.orders.take()
        if not self.connected:
            return Difference.NOT_WRITTEN, math.nan
        leased = self.inbox.poll(now_ns)
        target, difference = self._pick(now_ns, leased)
        self._difference, distance = self._send(target, difference)
        return self._difference, distance

    # -- read --------------------------------------------------------------------------------

    def _connect(self) -> bool:
        if time.monotonic() < self._retry_at_s:
            return False
        first = self.lifecycle is Lifecycle.STARTING
        try:
            self.robot.connect()
            self.state = self.robot.read(0.1)
            self.torque = self.robot.torque()
            self.sent = np.asarray(self.robot.held(), dtype=np.float64)
        except DeviceError as error:
            self.robot.disconnect()
            self._not_connected(str(error))
            self._retry_at_s = time.monotonic() + RECONNECT_S
            return False
        self.connected = True
        if self._refused:
            self.fault = f"connected now, before: {self._refused}"
            print(f"{self.name}: connected", file=sys.stderr, flush=True)
            self._refused = ""
        self._heard_s = self._asked_s = time.monotonic()
        self._silent_s = 0.0
        self.hold_here()
        if first:
            self.lifecycle = Lifecycle.DISARMED
            if self._after_crash:
                self._fail("the arm process died and was started again")
        return True

    def _not_connected(self, reason: str) -> None:
        """A fault whose text is what stands in the way now, for that is what is mended next.

        Attempts go on, and each may fail of something else than the one before. The stop flag, the
        log and the episode keep the reasons before.
        """
        self._fail(reason)
        self._refused = reason
        if reason != self.fault:
            self.fault = reason
            print(f"{self.name}: not connected: {reason}", file=sys.stderr, flush=True)

    def _read(self) -> None:
        """Take up the answer to last turn's request. One that is late costs a state, not a turn.

        A host that stood still is not the bus's silence: no turn counts for more than two periods.
        """
        now_s = time.monotonic()
        asked_s, self._asked_s = now_s - self._asked_s, now_s
        try:
            state = self.robot.read(ANSWER_SHARE * self.period_s)
            if state.t_ns != self.state.t_ns:
                self._heard_s = time.monotonic()
                self._silent_s = 0.0
            self.state = state
        except DeviceError as error:
            self.retries += 1
            self._silent_s += min(asked_s, 2.0 * self.period_s)
            if self._silent_s > SILENCE_S:
                self._fail(f"no answer for {time.monotonic() - self._heard_s:.2f} s: {error}")
                self.robot.disconnect()
                self.connected = False

    def _watch(self, now_ns: int) -> None:
        """Notice own faults, peers in trouble and the stop flag."""
        if self.connected:
            self.torque = self.robot.torque()
            trouble = self.robot.faults()
            silent = self.state.age_s > self._silence_s
            if trouble is None and silent.any():
                joint = int(silent.argmax())
                trouble = (
                    f"{self.spec.joints[joint].name} has not answered for "
                    f"{self.state.age_s[joint]:.2f} s"
                )
            if trouble is not None:
                self._fail(trouble)
        if self.tick % STOP_FILE_TICKS == 0 and not self.stop.present():
            self._fail("its stop flag has vanished from shared memory: start the station again")
        peer = self.peers.poll(now_ns)
        if peer is not None and self.lifecycle is Lifecycle.ARMED:
            self.stop.set(int(StopCategory.HOLD) + 1, peer)
        if self.stop.value and self.lifecycle in (Lifecycle.ARMED, Lifecycle.DISARMED):
            self.lifecycle = Lifecycle.STOPPED

    def _fail(self, reason: str) -> None:
        """Latch a fault and stop the whole group; the first reason stays while there is a
        connection."""
        if self.lifecycle is Lifecycle.FAULT:
            return
        self.lifecycle = Lifecycle.FAULT
        self.fault = reason
        self.stop.set(int(StopCategory.HOLD) + 1, f"{self.name}: {reason}")
        print(f"{self.name}: fault: {reason}", file=sys.stderr, flush=True)

    # -- what is held ------------------------------------------------------------------------

    def hold_here(self) -> None:
        """What was last sent is where the next motion starts, from rest."""
        self.rest = self.sent
        self.filter.reset(self.sent)

    def rebase(self) -> None:
        """Start again from the device's goals where it has torque, from where it is elsewhere."""
        self.sent = np.where(self.torque, self.robot.held(), self.state.q)
        self.hold_here()

    # -- command to write --------------------------------------------------------------------

    def _pick(self, now_ns: int, leased: bool) -> tuple[NDArray[np.float64] | None, Difference]:
        if self.lifecycle is not Lifecycle.ARMED:
            self.buffer.clear()  # what is asked now is not done later
            stopped = self.lifecycle in (Lifecycle.STOPPED, Lifecycle.FAULT)
            return None, Difference.STOPPED if stopped else Difference.DISARMED
        if not leased:
            return None, Difference.OUT_OF_LEASE
        if time.monotonic() - self._heard_s > SILENCE_S / 2:
            return None, Difference.STALE
        sample = self.buffer.target(now_ns)
        target, difference = sample.target, sample.difference | self.inbox.refused
        self._chunk = (sample.chunk_id, sample.index, sample.observation_t_ns)
        if sample.mode is not self._mode:
            self._change_mode(sample.mode)
        if target is not None and self._mode is CommandMode.EE_POSE:
            target, why = self._joints(target)
            difference |= why
        if target is not None:
            self._asked[:] = target
        return target, difference

    def _change_mode(self, mode: CommandMode) -> None:
        self._mode = mode
        self._asked_pose[:] = math.nan
        if self.poses is not None:
            self.poses.leave()

    def _joints(self, target: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, Difference]:
        """The joints for the pose that ``target`` (dof,) begins with."""
        assert self.poses is not None  # the inbox lets no pose through without
        self._asked_pose[:] = target[:POSE]
        return self.poses.joints(
            target, self.sent, engaged=self.filter.engaged, last=self._difference
        )

    def _send(
        self, target: NDArray[np.float64] | None, difference: Difference
    ) -> tuple[Difference, float]:
        if not self.torque.any():  # backdriven by hand: nothing to send, follow where it is
            self.buffer.clear()  # what was planned before is not done afterwards
            self.rebase()
            return difference | Difference.TORQUE_OFF, math.nan
        now_s = time.monotonic()
        dt_s, self._stepped_s = now_s - self._stepped_s, now_s
        self._distance = math.nan
        self._others = self.peers.goals() if self.guard is not None else None
        clearance = self._clearance if self.guard is not None else None
        result = self.filter.step(target, dt_s, guard=clearance)
        difference |= result.difference
        distance = self._distance
        if not self.torque.all():
            difference |= Difference.TORQUE_OFF
        sent, rest = result.sent, result.rest
        try:
            stopped = None if self.filter.engaged else self.robot.halt()
            if stopped is not None:
                self.filter.place(stopped)
                unknown = np.isnan(stopped)
                sent, rest = np.where(unknown, sent, stopped), np.where(unknown, rest, stopped)
            self.robot.write(sent)
        except DeviceError as error:
            self._fail(str(error))
            return difference | Difference.NOT_WRITTEN, distance
        self.standing = bool(np.abs(result.sent - self.sent).max() < STANDSTILL)
        self.sent, self.rest = sent, rest
        self.sent_t_ns = time.monotonic_ns()
        self._power_off_when_standing()
        return difference, distance

    def _clearance(self, held: NDArray[np.float64], rest: NDArray[np.float64]) -> float:
        """How much of a step is free of collision, for the filter."""
        assert self.guard is not None
        if self._others is None:  # nothing is known of the other arm: nothing is free
            return 0.0
        free, self._distance = self.guard.check(held, rest, self._others)
        return free

    def _power_off_when_standing(self) -> None:
        """Stop category 1, for robots that do not fall: torque off once it stands still."""
        if (
            self.stop.value == int(StopCategory.STOP_THEN_OFF) + 1
            and not self.config.falls
            and self.standing
            and self.torque.any()
        ):
            try:
                self.robot.set_torque([True] * self.spec.dof, False)
            except DeviceError as error:
                self._fail(str(error))
            self.torque = self.robot.torque()

    # -- publish -----------------------------------------------------------------------------

    def _publish(
        self, difference: Difference, distance: float, lateness_ns: int, overruns: int, woke_ns: int
    ) -> None:
        record = self._record[0]
        state, inbox = self.state, self.inbox
        record["t_ns"] = state.t_ns if self.connected else woke_ns
        record["tick"] = self.tick
        # What was known before the connection was lost is not known now.
        record["q"] = state.q if self.connected else math.nan
        record["dq"] = state.dq if self.connected else math.nan
        record["tau"] = state.tau if self.connected else math.nan
        record["age_s"] = state.age_s if self.connected else (woke_ns - state.t_ns) / 1e9
        record["asked"] = self._asked
        record["mode"] = self._mode
        record["asked_pose"] = self._asked_pose
        posed = self.connected and state.ee_pose is not None
        record["ee_pose"] = state.ee_pose if posed else math.nan
        record["sent"] = self.sent
        record["rest"] = self.rest
        record["sent_t_ns"] = self.sent_t_ns
        record["difference"] = int(difference)
        record["source"] = int(inbox.source) if self.lifecycle is Lifecycle.ARMED else Source.NONE
        record["lifecycle"] = int(self.lifecycle)
        record["torque"] = self.torque
        record["stop"] = self.stop.value
        record["token"] = inbox.token
        record["command_seq"] = inbox.seq
        record["command_t_ns"] = inbox.command_t_ns
        record["chunk_id"], record["chunk_index"], record["observation_t_ns"] = self._chunk
        record["order_done"] = self.orders.done
        record["distance"] = distance
        record["lateness_ns"] = lateness_ns
        record["busy_ns"] = time.monotonic_ns() - woke_ns
        told = self.connected and state.applied is not None
        record["applied"] = state.applied if told else math.nan
        record["target_age_s"] = state.target_age_s if self.connected else math.nan
        record["success_rate"] = state.success_rate if self.connected else math.nan
        record["notice"] = state.notice.encode()[:160] if self.connected else b""
        record["retries"] = self.retries
        record["overruns"] = overruns
        record["fault"] = self.fault.encode()[:320]
        self._ring.publish(record)
        self.tick += 1


def _group_specs(station: Station, robots: tuple[str, ...]) -> dict[str, int]:
    """Degrees of freedom of each robot of a group, from its driver's spec."""
    sizes = {}
    for name in robots:
        config = station.robots[name]
        robot = registry.load("robot", config.driver).from_config(config, station)
        sizes[name] = robot.spec.dof
    return sizes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One robot's real-time loop.")
    parser.add_argument("--station-file", required=True)
    parser.add_argument("--robot", required=True)
    parser.add_argument("--after-crash", action="store_true")
    options = parser.parse_args(arguments)
    print_or_go_on()
    try:
        station = load_station(options.station_file)
        ArmProcess(station, options.robot, after_crash=options.after_crash).run()
    except RobotStackError as error:
        print(f"{options.robot}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
