"""What a virtual arm does in each millisecond: its modes, its motions, its reflexes.

`step` takes the client's command of this millisecond (None: it was lost or came late), guards it,
and gives joint torques; after the physics, `measured` looks for collisions and fills the state. A
lost command is extrapolated at constant acceleration and torques are held, as the FCI
documentation has it; the twentieth loss in a row is a reflex. In a reflex the robot brakes by
itself, and takes no motion before an automatic error recovery.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.fci import (
    Controller,
    Generator,
    MotionCommand,
    RobotMode,
    StateBuffer,
    Status,
    Version,
    error_flags,
)
from hardware.franka.limits import Model, limits_of
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.enforcement import Enforcement
from hardware.franka.virtual.generators import MotionGenerator, Setpoint
from hardware.franka.virtual.losses import Losses
from hardware.franka.virtual.report import Measured, Report
from hardware.franka.virtual.running import Running, requested
from hardware.franka.virtual.servo import PoseFollower, cartesian_impedance, joint_impedance
from hardware.franka.virtual.settings import Settings

__all__ = ["Motion"]

Array = NDArray[np.float64]

# A client may take this long to its first command: from when on the real robot counts losses is not
# published, and libfranka lets a few states pass before it answers one.
START_MS = 1000
RECOVERY_STEPS = 50
GUIDING_DAMPING = 1.0  # Nm s/rad
SLOW_CHECKS = 10  # milliseconds between checks of what changes slowly, and costs
_SINGULAR = 0.01  # smallest singular value of the Jacobian
_COMMUNICATION = "communication_constraints_violation"


class Motion:
    """The motion state machine of one arm; one call of `step` and of `measured` a millisecond.

    `state` is the record for the wire. `outcome` says how the motion ended and `recovered` how
    the recovery did; the server takes them with `take_outcome` and `take_recovery` after the
    state that shows it is out.
    """

    def __init__(self, body: Body, version: Version, model: Model, settings: Settings) -> None:
        self.body, self.version, self.settings = body, version, settings
        self._limits = limits_of(model)
        self._acceleration = np.array(self._limits.acceleration)
        self.enforcement = Enforcement(model)
        self._kinematics = PoseFollower(model)
        self.state = StateBuffer(version)
        self.mode = RobotMode.IDLE
        self.setpoint = Setpoint(body.q)
        self._losses = Losses()
        self._report = Report(self.state, body, settings, self._kinematics)
        self._running: Running | None = None
        self._outcome: Status | None = None
        self._recovered: Status | None = None
        self._recovering = 0
        self._errors: tuple[str, ...] = ()
        self._torque: Array = np.zeros(7)
        self._turns = 0
        self._revision = settings.revision
        self._report.configure()
        self.measured()

    # -- what the server asks ----------------------------------------------------------------------

    @property
    def moving(self) -> bool:
        """Whether a motion of the client runs."""
        return self._running is not None

    @property
    def lost(self) -> int:
        """Commands that did not come in time, of all motions so far."""
        return self._losses.total

    @property
    def synchronous(self) -> bool:
        """Whether the client owes a command every millisecond."""
        return self._running is not None and not (
            self._running.asynchronous or self._running.stopping
        )

    @property
    def answering(self) -> bool:
        """Whether the client owes a command now: the motion is synchronous, and it has sent its
        first one. Before that libfranka waits for a further state itself."""
        running = self._running
        return running is not None and running.generator is not None and self.synchronous

    @property
    def errors(self) -> tuple[str, ...]:
        """Names of the errors that are present."""
        return self._errors

    def start(self, request: Any) -> Status:
        """Begin the motion of a Move request; MOTION_STARTED, or why not."""
        if self.mode != RobotMode.IDLE:
            return Status.NOT_POSSIBLE
        running = requested(request, self.version, self._limits)
        if isinstance(running, Status):
            return running
        if running.code in (Generator.POSE, Generator.TWIST):
            jacobian = self._kinematics.jacobian(self.setpoint.q, self.settings.F_T_EE)
            if np.linalg.svd(jacobian, compute_uv=False)[-1] < _SINGULAR:
                return Status.SINGULAR
        self._running = running
        self.state.reflex_reason = error_flags(())
        self._losses.begin()
        self.mode = RobotMode.MOVE
        return Status.MOTION_STARTED

    def stop(self) -> None:
        """StopMove: bring the motion to rest; its outcome is PREEMPTED."""
        if self._running is not None and not self._running.stopping:
            self._rest_from_torque(self._running)
            self._running.stopping = True

    def abandon(self) -> None:
        """The client is gone. In the middle of a motion that is a reflex."""
        if self._running is not None:
            self.reflex((_COMMUNICATION,))
        self._outcome = self._recovered = None

    def reset(self) -> None:
        """The robot as after switching it on, wherever its joints are now."""
        self._errors = ()
        self.state.errors = self.state.reflex_reason = error_flags(())
        self._recovering = 0
        self.setpoint = Setpoint(self.body.q)
        self._end(Status.ABORTED)
        self.mode = RobotMode.IDLE

    def reflex(self, names: Iterable[str]) -> None:
        """Stop at once for these errors. A reflex in a reflex adds its errors."""
        names = tuple(names)
        self._errors = tuple(dict.fromkeys((*self._errors, *names)))
        self.state.errors = self.state.reflex_reason = error_flags(self._errors)
        self._recovering = 0
        if self.mode != RobotMode.USER_STOPPED:
            self.mode = RobotMode.REFLEX
        self._end(Status.REFLEX_ABORTED)

    def user_stop(self, pressed: bool) -> None:
        """The user stop is pressed (the brakes hold) or released."""
        if pressed:
            self.mode = RobotMode.USER_STOPPED
            self._end(Status.EMERGENCY_ABORTED)
        elif self.mode == RobotMode.USER_STOPPED:
            self.mode = RobotMode.REFLEX if self._errors else RobotMode.IDLE

    def guide(self, active: bool) -> None:
        """The guiding buttons at the wrist are held, or released."""
        if active and self.mode == RobotMode.IDLE:
            self.mode = RobotMode.GUIDING
        elif not active and self.mode == RobotMode.GUIDING:
            self.mode = RobotMode.IDLE

    def recover(self) -> Status | None:
        """Automatic error recovery: its status now, or None: `take_recovery` has it later."""
        if self.mode in (RobotMode.MOVE, RobotMode.GUIDING, RobotMode.USER_STOPPED):
            return Status.NOT_POSSIBLE
        if self.mode == RobotMode.IDLE:
            return Status.SUCCESS
        q, limits = self.body.q, self._limits
        if ((q < limits.q_lower) | (q > limits.q_upper)).any():
            return Status.MANUAL_RECOVERY
        if self._recovering == 0:
            self._recovering = RECOVERY_STEPS
        return None

    def take_outcome(self) -> Status | None:
        """How the motion ended, once."""
        outcome, self._outcome = self._outcome, None
        return outcome

    def take_recovery(self) -> Status | None:
        """How the recovery ended, once."""
        recovered, self._recovered = self._recovered, None
        return recovered

    # -- one millisecond ---------------------------------------------------------------------------

    def step(self, command: MotionCommand | None) -> Array:
        """Torques (7,) Nm for the next millisecond, gravity not included."""
        if self._revision != self.settings.revision:
            self._revision = self.settings.revision
            self._report.configure()
        running = self._running
        if running is not None and not running.stopping:
            self._torque = self._commanded(running, command)
        else:
            self._torque = self._by_itself(running)
        return self._torque

    def _commanded(self, running: Running, command: MotionCommand | None) -> Array:
        generator = running.generator
        if command is not None:
            self._losses.count(True)
            if generator is None:
                generator = self._begin(running)
            errors = generator.use(command)
        elif generator is None:
            running.waited += not running.asynchronous
            if running.waited >= START_MS:
                self.reflex((_COMMUNICATION,))
            return self._by_itself(None)
        else:
            if not running.asynchronous:
                self._losses.count(False)
                if self._losses.too_many:
                    self.reflex((_COMMUNICATION,))
                    return self._by_itself(None)
            errors = generator.lost()
        external = running.controller == Controller.EXTERNAL
        torque = self._torque
        if external and not errors and command is not None:
            torque = np.array(command.tau)
            errors = self.enforcement.torques(torque)
        finished = command is not None and (
            command.torque_finished if running.code == Generator.NONE else command.motion_finished
        )
        if finished and not errors:
            errors = generator.rest()
        if errors:
            self.reflex(errors)
            return self._by_itself(None)
        if finished and running.asynchronous:
            running.stopping = True
        elif finished:
            self._end(Status.SUCCESS)
            return self._by_itself(None)
        if external:
            if running.code == Generator.NONE:
                self.setpoint.follow(self.body.q, self.body.dq)
            return torque
        return self._tracking(running)

    def _begin(self, running: Running) -> MotionGenerator:
        return running.begin(
            self.setpoint, self.enforcement, self._kinematics, self.settings,
            self._torque, self._acceleration,
        )  # fmt: skip

    def _tracking(self, running: Running) -> Array:
        point, settings = self.setpoint, self.settings
        if running.controller == Controller.JOINT_IMPEDANCE:
            return joint_impedance(point.q, point.dq, self.body, settings.joint_stiffness)
        pose = self._kinematics.pose(point.q, settings.F_T_EE)
        twist = self._kinematics.jacobian(point.q, settings.F_T_EE) @ point.dq
        return cartesian_impedance(
            pose, twist, point.q, self.body, settings.cartesian_stiffness, settings.F_T_EE
        )

    def _by_itself(self, running: Running | None) -> Array:
        """Torques of a robot that no client commands: guiding, braking or holding."""
        point = self.setpoint
        if self.mode == RobotMode.GUIDING:
            point.follow(self.body.q, self.body.dq)
            return -GUIDING_DAMPING * self.body.dq
        if not point.at_rest or point.ddq.any():
            point.brake(self._acceleration)
        if point.at_rest:
            if running is not None and running.stopping:
                self._end(Status.SUCCESS if running.asynchronous else Status.PREEMPTED)
            if self._recovering:
                self._recover_step()
        return joint_impedance(point.q, point.dq, self.body, self.settings.joint_stiffness)

    def _recover_step(self) -> None:
        self.mode = RobotMode.RECOVERY
        self._recovering -= 1
        if self._recovering == 0:
            self.mode, self._errors = RobotMode.IDLE, ()
            self.state.errors = error_flags(())
            self._recovered = Status.SUCCESS

    def _end(self, outcome: Status) -> None:
        running = self._running
        if running is None:
            return
        self._rest_from_torque(running)
        self._running, self._outcome = None, outcome
        if outcome in (Status.SUCCESS, Status.PREEMPTED):
            self.mode = RobotMode.IDLE

    def _rest_from_torque(self, running: Running) -> None:
        """Under torques nothing but the joints themselves says from where to brake."""
        if running.controller == Controller.EXTERNAL:
            self.setpoint.follow(self.body.q, self.body.dq)

    # -- the state ---------------------------------------------------------------------------------

    def measured(self) -> None:
        """The physics have moved: look for collisions and fill the state."""
        seen = self._report.measure(self.setpoint)
        if self.mode in (RobotMode.IDLE, RobotMode.MOVE):
            errors = self._violations(seen)
            if errors:
                self.reflex(errors)
        running, state = self._running, self.state
        generator = running.generator if running is not None else None
        self._report.fill(seen, self.setpoint, self._torque, generator)
        state.mode = int(self.mode)
        state.generator = int(running.code) if running is not None else int(Generator.IDLE)
        state.controller = int(running.controller) if running is not None else Controller.OTHER
        state.success_rate = self._losses.success_rate if running is not None else 0.0

    def _violations(self, seen: Measured) -> tuple[str, ...]:
        body, running = self.body, self._running
        sensors = (seen.q, seen.dq, seen.tau_ext, seen.wrench)
        thresholds = (self.settings.torque, self.settings.force)
        self._turns += 1
        if self._turns % SLOW_CHECKS:
            errors = self.enforcement.measured(*sensors, thresholds)
        else:
            errors = self.enforcement.measured(
                *sensors,
                thresholds,
                touching_itself=body.touching_itself(),
                twist=body.jacobian(self.settings.F_T_EE) @ seen.dq,
            )
        if running is not None and running.controller != Controller.EXTERNAL:
            off = seen.pose[:3, 3] - seen.desired[:3, 3]
            if off @ off > running.path_deviation**2:
                return (*errors, "max_path_pose_deviation_violation")
        return errors
