"""What a virtual arm does in each millisecond: its modes, its motions, its reflexes.

`step` takes the client's command of this millisecond (None: it was lost or came late), guards it,
and gives joint torques; after the physics, `measured` looks for collisions and fills the state. A
lost command is extrapolated at constant acceleration and torques are held, as the FCI
documentation has it; the twentieth loss in a row is a reflex. In a reflex the robot brakes by
itself, and takes no motion before an automatic error recovery.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
from hardware.franka.limits import ELBOW_FLIP, Model, limits_of
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.enforcement import Enforcement
from hardware.franka.virtual.generators import (
    AsynchronousPosition,
    JointPosition,
    JointVelocity,
    MotionGenerator,
    Pose,
    Setpoint,
    TorqueOnly,
    Twist,
)
from hardware.franka.virtual.servo import PoseFollower, cartesian_impedance, joint_impedance
from hardware.franka.virtual.settings import Settings

__all__ = ["LOSSES_MAX", "Motion"]

Array = NDArray[np.float64]

STEP_S = 0.001
LOSSES_MAX = 20
# A client may take this long to its first command: from when on the real robot counts losses is not
# published, and libfranka lets a few states pass before it answers one.
START_MS = 1000
WINDOW = 100  # commands that the success rate counts
RECOVERY_STEPS = 50
GUIDING_DAMPING = 1.0  # Nm s/rad
SLOW_CHECKS = 10  # milliseconds between checks of what changes slowly, and costs
GRAVITY = (0.0, 0.0, -9.81)
_SINGULAR = 0.01  # smallest singular value of the Jacobian
_COMMUNICATION = "communication_constraints_violation"


@dataclass(slots=True)
class _Running:
    """The motion under way; `generator` is None until the first command has come."""

    controller: Controller
    code: Generator
    speed: Array | None  # of asynchronous positions
    path_deviation: float
    generator: MotionGenerator | None = None
    stopping: bool = False
    waited: int = 0
    losses: int = 0

    @property
    def asynchronous(self) -> bool:
        return self.speed is not None


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
        self.lost = 0
        self._running: _Running | None = None
        self._outcome: Status | None = None
        self._recovered: Status | None = None
        self._recovering = 0
        self._errors: tuple[str, ...] = ()
        self._torque: Array = np.zeros(7)
        self._tau_J: Array = np.zeros(7)
        self._received = bytearray(WINDOW)
        self._counted = self._successes = 0
        self._turns = 0
        self._revision = -1
        self.configure()
        self.measured()

    # -- what the server asks ----------------------------------------------------------------------

    @property
    def moving(self) -> bool:
        """Whether a motion of the client runs."""
        return self._running is not None

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
        controller, number = int(request["controller"]), int(request["generator"]) + 1
        deviations = np.array(request["deviations"])
        generators = 5 if self.version == 10 else 4
        if (
            controller > Controller.EXTERNAL
            or number > generators
            or not ((deviations >= 0.0) & np.isfinite(deviations)).all()
        ):
            return Status.INVALID_ARGUMENT
        code = Generator(number)
        if code == Generator.NONE and controller != Controller.EXTERNAL:
            return Status.INVALID_ARGUMENT
        asynchronous = self.version == 10 and bool(request["asynchronous"])
        speed = np.array(request["max_velocity"]) if asynchronous else np.zeros(7)
        if asynchronous and (
            code != Generator.JOINT_POSITION
            or controller == Controller.EXTERNAL
            or not ((speed > 0.0) & (speed <= self._limits.velocity)).all()
        ):
            return Status.INVALID_ARGUMENT
        if code in (Generator.POSE, Generator.TWIST):
            jacobian = self._kinematics.jacobian(self.setpoint.q, self.settings.F_T_EE)
            if np.linalg.svd(jacobian, compute_uv=False)[-1] < _SINGULAR:
                return Status.SINGULAR
        self._running = _Running(
            Controller(controller), code, speed if asynchronous else None, float(deviations[0])
        )
        self.state.reflex_reason = error_flags(())
        self._received[:] = bytes(WINDOW)
        self._counted = self._successes = 0
        self.mode = RobotMode.MOVE
        return Status.MOTION_STARTED

    def _generator(self, running: _Running) -> MotionGenerator:
        """From the first command on: the robot may still have been braking at the Move request."""
        point, guard = self.setpoint, self.enforcement
        pose = self._kinematics.pose(point.q, self.settings.F_T_EE)
        guard.begin(point.q, point.dq, pose, self._torque)
        if running.speed is not None:
            return AsynchronousPosition(point, guard, running.speed, self._acceleration)
        if running.code == Generator.JOINT_POSITION:
            return JointPosition(point, guard)
        if running.code == Generator.JOINT_VELOCITY:
            return JointVelocity(point, guard)
        if running.code == Generator.POSE:
            return Pose(point, guard, self._kinematics, self.settings)
        if running.code == Generator.TWIST:
            return Twist(point, guard, self._kinematics, self.settings)
        return TorqueOnly()

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
            self.configure()
        running = self._running
        if running is not None and not running.stopping:
            self._torque = self._commanded(running, command)
        else:
            self._torque = self._by_itself(running)
        return self._torque

    def _commanded(self, running: _Running, command: MotionCommand | None) -> Array:
        errors: tuple[str, ...] = ()
        if command is not None:
            self._count(True)
            running.losses = 0
            if running.generator is None:
                running.generator = self._generator(running)
            errors = running.generator.use(command)
        elif running.generator is None:
            running.waited += not running.asynchronous
            if running.waited >= START_MS:
                self.reflex((_COMMUNICATION,))
            return self._by_itself(None)
        else:
            if not running.asynchronous:
                self._count(False)
                self.lost += 1
                running.losses += 1
                if running.losses >= LOSSES_MAX:
                    self.reflex((_COMMUNICATION,))
                    return self._by_itself(None)
            errors = running.generator.lost()
        generator = running.generator
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

    def _tracking(self, running: _Running) -> Array:
        point, settings = self.setpoint, self.settings
        if running.controller == Controller.JOINT_IMPEDANCE:
            return joint_impedance(point.q, point.dq, self.body, settings.joint_stiffness)
        pose = self._kinematics.pose(point.q, settings.F_T_EE)
        twist = self._kinematics.jacobian(point.q, settings.F_T_EE) @ point.dq
        return cartesian_impedance(
            pose, twist, point.q, self.body, settings.cartesian_stiffness, settings.F_T_EE
        )

    def _by_itself(self, running: _Running | None) -> Array:
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

    def _rest_from_torque(self, running: _Running) -> None:
        """Under torques nothing but the joints themselves says from where to brake."""
        if running.controller == Controller.EXTERNAL:
            self.setpoint.follow(self.body.q, self.body.dq)

    def _count(self, received: bool) -> None:
        slot = self._counted % WINDOW
        self._successes += received - self._received[slot]
        self._received[slot] = received
        self._counted += 1

    # -- the state ---------------------------------------------------------------------------------

    def configure(self) -> None:
        """Take over changed settings."""
        settings, state, body = self.settings, self.state, self.body
        self._revision = settings.revision
        for name in ("F_T_EE", "F_T_NE", "NE_T_EE", "EE_T_K"):
            state[name][:] = getattr(settings, name).T.ravel()
        state["m_ee"][:] = settings.hand_mass
        state["F_x_Cee"][:] = settings.hand_com
        state["I_ee"][:] = settings.hand_inertia.T.ravel()
        state["m_load"][:] = settings.load_mass
        state["F_x_Cload"][:] = settings.load_com
        state["I_load"][:] = settings.load_inertia.T.ravel()
        state["O_ddP_O"][:] = GRAVITY
        body.set_load(settings.load_mass, settings.load_com, settings.load_inertia)
        body.F_T_K = settings.F_T_EE @ settings.EE_T_K

    def measured(self) -> None:
        """The physics have moved: look for collisions and fill the state."""
        body, state, settings, point = self.body, self.state, self.settings, self.setpoint
        q, dq, tau_ext, wrench = body.q, body.dq, body.tau_ext, body.O_F_ext
        pose = body.forward(settings.F_T_EE)
        desired = self._kinematics.pose(point.q, settings.F_T_EE)
        if self.mode in (RobotMode.IDLE, RobotMode.MOVE):
            errors = self._violations(q, dq, tau_ext, wrench, pose, desired)
            if errors:
                self.reflex(errors)
        running = self._running
        state["O_T_EE"][:] = pose.T.ravel()
        state["O_T_EE_d"][:] = desired.T.ravel()
        state["q"][:] = state["theta"][:] = q
        state["dq"][:] = state["dtheta"][:] = dq
        state["q_d"][:], state["dq_d"][:], state["ddq_d"][:] = point.q, point.dq, point.ddq
        tau_J = body.tau_J
        state["dtau_J"][:] = (tau_J - self._tau_J) / STEP_S
        state["tau_J"][:] = self._tau_J = tau_J
        state["tau_J_d"][:] = self._torque
        state["tau_ext_hat_filtered"][:] = tau_ext
        state["O_F_ext_hat_K"][:] = wrench
        turn = pose[:3, :3] @ settings.EE_T_K[:3, :3]
        state["K_F_ext_hat_K"][:3] = wrench[:3] @ turn
        state["K_F_ext_hat_K"][3:] = wrench[3:] @ turn
        force, push = np.abs(tau_ext), np.abs(wrench)
        state["joint_contact"][:] = force > settings.torque[2]
        state["joint_collision"][:] = force > settings.torque[3]
        state["cartesian_contact"][:] = push > settings.force[2]
        state["cartesian_collision"][:] = push > settings.force[3]
        state["elbow"][:] = q[2], 1.0 if q[3] > ELBOW_FLIP else -1.0
        elbow = (point.q[2], 1.0 if point.q[3] > ELBOW_FLIP else -1.0)
        state["elbow_d"][:] = state["elbow_c"][:] = elbow
        generator = running.generator if running is not None else None
        if isinstance(generator, Pose | Twist):
            state["O_T_EE_c"][:] = generator.pose.T.ravel()
            state["O_dP_EE_d"][:] = state["O_dP_EE_c"][:] = generator.twist
            state["O_ddP_EE_c"][:] = generator.acceleration
            state["delbow_c"][0] = point.dq[2]
            state["ddelbow_c"][0] = point.ddq[2]
        else:
            state["O_T_EE_c"][:] = state["O_T_EE_d"]
            state["O_dP_EE_d"][:] = state["O_dP_EE_c"][:] = state["O_ddP_EE_c"][:] = 0.0
            state["delbow_c"][0] = state["ddelbow_c"][0] = 0.0
        state.mode = int(self.mode)
        state.generator = int(running.code) if running is not None else int(Generator.IDLE)
        state.controller = int(running.controller) if running is not None else Controller.OTHER
        counted = min(self._counted, WINDOW)
        state.success_rate = self._successes / counted if running is not None and counted else 0.0

    def _violations(
        self, q: Array, dq: Array, tau_ext: Array, wrench: Array, pose: Array, desired: Array
    ) -> tuple[str, ...]:
        body, running = self.body, self._running
        thresholds = (self.settings.torque, self.settings.force)
        self._turns += 1
        if self._turns % SLOW_CHECKS:
            errors = self.enforcement.measured(q, dq, tau_ext, wrench, thresholds)
        else:
            errors = self.enforcement.measured(
                q, dq, tau_ext, wrench, thresholds,
                touching_itself=body.touching_itself(),
                twist=body.jacobian(self.settings.F_T_EE) @ dq,
            )  # fmt: skip
        if running is not None and running.controller != Controller.EXTERNAL:
            off = pose[:3, 3] - desired[:3, 3]
            if off @ off > running.path_deviation**2:
                return (*errors, "max_path_pose_deviation_violation")
        return errors
