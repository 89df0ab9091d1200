"""The body of one virtual Franka: MuJoCo joints driven by torque, what its sensors would show.

Signs are the FCI's: `tau_ext` and `O_F_ext` are positive for what the robot does to its
surroundings (measured torque minus what the model expects), so a held object that nobody told
the robot of pulls `O_F_ext` up, not down. Poses are in the frame of link0, whatever the arm is
mounted on.
"""

from __future__ import annotations

from math import exp, pi

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware.franka.kinematics import HAND_TCP, HOME
from hardware.franka.limits import Model
from hardware.franka.virtual.scene import MAX_WIDTH, STEP_S, arm_scene

__all__ = ["NO_LOAD", "Body"]

Array = NDArray[np.float64]


NO_LOAD = (0.0, np.zeros(3), np.zeros((3, 3)))
"""Mass kg, centre (3,) in the flange frame, inertia (3, 3) about it."""

# The external torque is an observer's output; its bandwidth is not published.
_OBSERVER = 1.0 - exp(-2.0 * pi * 50.0 * STEP_S)
_FLANGE = np.eye(4)  # in link 7
_FLANGE[2, 3] = 0.107
_FINGER_STIFFNESS = 8000.0  # N/m of one finger's position loop
_FINGER_DAMPING = 80.0  # N s/m
_SINGULAR = 1e-6  # det(J J^T), m^6: 6e-3 at home, under this in 1 of 60 random poses


class Body:
    """Joints, fingers and told load of one arm inside `model`, whose names start with `prefix`.

    In a world with other bodies: `apply(tau)`, then the world advances 1 ms. `step(tau)` does
    both. After `mj_step2` + `mj_step1`, as `step` does it, poses belong to `q`; after a plain
    `mj_step` they are those of 1 ms before.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = "") -> None:
        self.model, self.data = model, data
        joints = [model.joint(f"{prefix}joint{i + 1}") for i in range(7)]
        fingers = [model.joint(f"{prefix}finger_joint{i + 1}") for i in range(2)]
        position, velocity = int(joints[0].qposadr[0]), int(joints[0].dofadr[0])
        self.arm = slice(velocity, velocity + 7)
        self._joint_ids = [int(joint.id) for joint in joints]
        self._q: Array = data.qpos[position : position + 7]
        self._dq: Array = data.qvel[self.arm]
        self._applied: Array = data.qfrc_applied[self.arm]
        self._constraint: Array = data.qfrc_constraint[self.arm]
        self._bias: Array = data.qfrc_bias[self.arm]
        self._gravity: Array = data.qfrc_gravcomp[self.arm]
        self._armature = model.dof_armature[self.arm]
        finger_q, finger_v = int(fingers[0].qposadr[0]), int(fingers[0].dofadr[0])
        self._finger_q = data.qpos[finger_q : finger_q + 2]
        self._finger_v = data.qvel[finger_v : finger_v + 2]
        self._finger_applied = data.qfrc_applied[finger_v : finger_v + 2]
        self._base = int(model.body(f"{prefix}link0").id)
        self._link7 = int(model.body(f"{prefix}link7").id)
        self._links = np.zeros(model.nbody, dtype=np.bool_)
        for name in (*(f"link{i}" for i in range(8)), "hand", "left_finger", "right_finger"):
            self._links[int(model.body(prefix + name).id)] = True
        self._moves = np.zeros((6, model.nv))  # scratch: Jacobian of a point for all joints
        self._frame = np.eye(4)  # scratch: link 7
        self._full = np.zeros((model.nv, model.nv))
        self._tau = np.zeros(7)
        self._push: Array | None = None
        self._tau_ext = np.zeros(7)
        self.load = NO_LOAD
        self._from_world: Array | None = None
        # Flange to stiffness frame K, where the external wrench is given.
        self.F_T_K: Array = HAND_TCP
        self._finger_goal = self._finger_set = 0.0
        self._finger_speed, self._finger_limit, self.finger_force = 0.0, 0.0, 0.0
        self.place(HOME)

    @classmethod
    def alone(cls, model: Model) -> Body:
        """An arm with nothing around it, at its home pose with open fingers."""
        compiled = arm_scene(model, visual=False).compile()
        return cls(compiled, mujoco.MjData(compiled))

    # -- what the sensors show -------------------------------------------------------------------

    @property
    def q(self) -> Array:
        """Joint positions (7,), rad."""
        return self._q.copy()

    @property
    def dq(self) -> Array:
        """Joint velocities (7,), rad/s."""
        return self._dq.copy()

    @property
    def tau_J(self) -> Array:  # noqa: N802
        """Torques behind the gears (7,), Nm: commanded, gravity and the told load."""
        return self._tau + self.gravity()

    @property
    def tau_ext(self) -> Array:
        """Filtered torque (7,) that the joints exert beyond the model's expectation, Nm."""
        return self._tau_ext.copy()

    @property
    def O_F_ext(self) -> Array:  # noqa: N802
        """Wrench (6,) on the surroundings at K, base frame, N and Nm; zero near singularities."""
        jacobian = self.jacobian(self.F_T_K)
        gram = jacobian @ jacobian.T
        if np.linalg.det(gram) < _SINGULAR:
            return np.zeros(6)
        return np.asarray(np.linalg.solve(gram, jacobian @ self._tau_ext), dtype=np.float64)

    @property
    def finger_width(self) -> float:
        """Distance of the pads, m."""
        return float(self._finger_q[0] + self._finger_q[1])

    @property
    def finger_speed(self) -> float:
        """Rate of `finger_width`, m/s; negative while closing."""
        return float(self._finger_v[0] + self._finger_v[1])

    # -- what moves it ---------------------------------------------------------------------------

    def place(self, q: ArrayLike, width: float = MAX_WIDTH) -> None:
        """Put the arm at rest at ``q`` (7,) rad with the pads ``width`` m apart, at once."""
        self._q[:] = q
        self._dq[:] = 0.0
        self._finger_q[:], self._finger_v[:] = width / 2, 0.0
        self._finger_goal = self._finger_set = width / 2
        self._finger_speed, self._finger_limit = 0.1, 30.0
        self._tau[:] = self._tau_ext[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        self._mount()

    def _mount(self) -> None:
        """Where the base stands in the world: a bolted arm's does not change."""
        base = np.eye(4)
        base[:3, :3] = self.data.xmat[self._base].reshape(3, 3)
        base[:3, 3] = self.data.xpos[self._base]
        if np.allclose(base, np.eye(4), atol=1e-12):
            self._from_world = None
        else:
            self._from_world = np.asarray(np.linalg.inv(base), dtype=np.float64)

    def apply(self, tau: ArrayLike) -> None:
        """Joint torques (7,) Nm beside gravity and load, which the robot adds itself, for the
        next 1 ms of physics."""
        # The pull of the surroundings in the step before, seen from the joints.
        outside = self._constraint
        pushed = None if self._push is None else self.jacobian(HAND_TCP).T @ self._push
        if pushed is not None:
            outside = outside + pushed
        self._tau[:] = tau
        if self.load[0] > 0.0:
            support = self._load_gravity()
            self._tau_ext -= _OBSERVER * (outside + support + self._tau_ext)
            np.add(self._tau, support, out=self._applied)
        else:
            self._tau_ext -= _OBSERVER * (outside + self._tau_ext)
            self._applied[:] = self._tau
        if pushed is not None:
            self._applied += pushed
        self._drive()

    def step(self, tau: ArrayLike) -> None:
        """`apply` and 1 ms of physics of the whole model."""
        self.apply(tau)
        # In this order the poses that follow belong to the new q.
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step1(self.model, self.data)

    def set_load(self, mass: float, com: ArrayLike, inertia: ArrayLike) -> None:
        """The load that the robot is told of: kg, centre (3,) in the flange frame, m, and
        inertia (3, 3) about it, kg m2. What really hangs there is the world's business."""
        centre = np.array(com, dtype=np.float64).reshape(3)
        self.load = (float(mass), centre, np.array(inertia, dtype=np.float64).reshape(3, 3))

    def push(self, wrench: ArrayLike | None) -> None:
        """From now on somebody pushes the end effector (hand TCP) with force and torque (6,),
        N and Nm in the base frame; None lets go."""
        self._push = None if wrench is None else np.asarray(wrench, dtype=np.float64).reshape(6)

    def drive_fingers(self, width: float, speed: float, force: float) -> None:
        """Move the pads to ``width`` m apart at ``speed`` m/s, each pushing with at most
        ``force`` N. Width 0 keeps pushing with ``force`` on whatever is between them."""
        over = force / _FINGER_STIFFNESS
        self._finger_goal = width / 2 if width > 0.0 else -over
        self._finger_set = float(self._finger_q.mean())
        self._finger_speed, self._finger_limit = speed / 2, force

    def stop_fingers(self) -> None:
        """Hold the fingers where they are, with the force they may use now."""
        self._finger_goal = self._finger_set = float(self._finger_q.mean())

    def _drive(self) -> None:
        reach = self._finger_speed * STEP_S
        lag = self._finger_goal - self._finger_set
        self._finger_set += max(-reach, min(reach, lag))
        rate = max(-reach, min(reach, lag)) / STEP_S
        here, speed = float(self._finger_q[0]), float(self._finger_v[0])
        force = _FINGER_STIFFNESS * (self._finger_set - here) + _FINGER_DAMPING * (rate - speed)
        self.finger_force = max(-self._finger_limit, min(self._finger_limit, force))
        self._finger_applied[:] = self.finger_force

    # -- the model -------------------------------------------------------------------------------

    def forward(self, F_T_EE: Array = HAND_TCP) -> Array:
        """O_T_EE (4, 4): the end effector in the base frame."""
        frame = self._frame
        frame[:3, :3] = self.data.xmat[self._link7].reshape(3, 3)
        frame[:3, 3] = self.data.xpos[self._link7]
        pose: Array = frame @ (_FLANGE @ F_T_EE)
        return pose if self._from_world is None else self._from_world @ pose

    def jacobian(self, F_T_EE: Array = HAND_TCP) -> Array:
        """(6, 7): linear (m) and angular (rad) velocity of the end effector for dq, base frame."""
        return self._jacobian(F_T_EE[:3, 3])

    def _jacobian(self, at: Array) -> Array:
        """Jacobian (6, 7) of a point (3,) of the flange frame, in the base frame."""
        link, data = self._link7, self.data
        point = data.xmat[link].reshape(3, 3) @ (at + _FLANGE[:3, 3]) + data.xpos[link]
        mujoco.mj_jac(self.model, data, self._moves[:3], self._moves[3:], point, link)
        jacobian: Array = self._moves[:, self.arm].copy()
        if self._from_world is not None:
            turn = self._from_world[:3, :3]
            jacobian[:3], jacobian[3:] = turn @ jacobian[:3], turn @ jacobian[3:]
        return jacobian

    def gravity(self) -> Array:
        """Torques (7,) that carry arm, hand and told load, Nm."""
        if self.load[0] > 0.0:
            return self._gravity + self._load_gravity()
        return self._gravity.copy()

    def coriolis(self) -> Array:
        """C(q, dq) dq of arm and hand (7,), Nm; the told load is not in it."""
        return self._bias - self._gravity

    def mass_matrix(self) -> Array:
        """Inertia (7, 7) of arm, hand and told load in kg m2, without the rotors."""
        mujoco.mj_fullM(self.model, self._full, self.data.qM)
        matrix: Array = self._full[self.arm, self.arm].copy()
        matrix[range(7), range(7)] -= self._armature
        mass, com, inertia = self.load
        if mass > 0.0:
            jacobian = self._jacobian(com)
            turn = self.forward(np.eye(4))[:3, :3]
            matrix += mass * jacobian[:3].T @ jacobian[:3]
            matrix += jacobian[3:].T @ turn @ inertia @ turn.T @ jacobian[3:]
        return matrix

    def touching_itself(self) -> bool:
        """Whether links of this arm touch each other (its fingers may)."""
        data = self.data
        if data.ncon == 0:
            return False
        bodies = self.model.geom_bodyid[data.contact.geom]  # (ncon, 2)
        links = self._links[bodies]
        hits = links.all(axis=1) & (bodies.min(axis=1) <= self._link7) & (data.contact.dist < 0.0)
        return bool(hits.any())

    def _load_gravity(self) -> Array:
        mass, com, _ = self.load
        down = self.model.opt.gravity
        if self._from_world is not None:
            down = self._from_world[:3, :3] @ down
        support: Array = self._jacobian(com)[:3].T @ (-mass * down)
        return support
