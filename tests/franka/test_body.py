"""The virtual arm's body: torques, gravity, load, external wrench and fingers, in MuJoCo."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.kinematics import HOME, Kinematics
from hardware.franka.limits import FR3
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.scene import arm_scene, configure
from hardware.franka.virtual.servo import (
    PoseFollower,
    cartesian_impedance,
    joint_impedance,
    orientation_error,
)

Array = NDArray[np.float64]
STILL = np.zeros(7)
G = 9.81


def hold(body: Body, steps: int, q: Array | None = None) -> None:
    target = np.array(HOME) if q is None else q
    for _ in range(steps):
        body.step(joint_impedance(target, STILL, body))


def random_poses(n: int) -> list[Array]:
    rng = np.random.default_rng(7)
    return [rng.uniform(FR3.q_lower, FR3.q_upper) for _ in range(n)]


def mounted(z_turn: float, tilt: float) -> Body:
    """An arm with a prefix, bolted to something that stands elsewhere and leans."""
    world = mujoco.MjSpec()
    frame = world.worldbody.add_frame(pos=(0.4, -0.2, 0.7), euler=(0.0, tilt, z_turn))
    world.compiler.degree = False
    world.attach(arm_scene("fr3", visual=False), prefix="left/", frame=frame)
    configure(world)
    model = world.compile()
    return Body(model, mujoco.MjData(model), "left/")


def test_gravity_is_the_robots_own_business() -> None:
    for body in (Body.alone("fr3"), mounted(1.0, 0.8)):
        for q in random_poses(3):
            body.place(np.clip(q, np.array(HOME) - 0.5, np.array(HOME) + 0.5))
            before = body.q
            for _ in range(200):
                body.step(STILL)
            np.testing.assert_allclose(body.q, before, atol=1e-6)


def test_forward_and_jacobian_are_in_the_base_frame() -> None:
    table = Kinematics()
    alone, leaning = Body.alone("fr3"), mounted(0.5, 0.3)
    for q in random_poses(5):
        alone.place(q)
        leaning.place(q)
        for body in (alone, leaning):
            np.testing.assert_allclose(body.forward(), table.transform(q), atol=1e-8)
        np.testing.assert_allclose(alone.jacobian(), leaning.jacobian(), atol=1e-8)
        jacobian = alone.jacobian()
        for i in range(7):
            step = np.zeros(7)
            step[i] = 1e-6
            ahead, behind = table.transform(q + step), table.transform(q - step)
            np.testing.assert_allclose(jacobian[:3, i], (ahead - behind)[:3, 3] / 2e-6, atol=1e-6)
            np.testing.assert_allclose(
                jacobian[3:, i], orientation_error(ahead, behind) / 2e-6, atol=1e-6
            )


def test_poses_belong_to_the_joints_while_moving() -> None:
    body = Body.alone("fr3")
    table = Kinematics()
    for _ in range(100):
        body.step(np.array([20.0, 0, 0, 0, 0, 0, 0]))
    assert body.dq[0] > 0.5
    np.testing.assert_allclose(body.forward(), table.transform(body.q), atol=1e-9)


def test_torque_accelerates_by_the_mass_matrix() -> None:
    body = Body.alone("fr3")
    rotors = np.diag(body.model.dof_armature[:7])
    for load in ((0.0, np.zeros(3), np.zeros((3, 3))), (2.0, np.array([0, 0, 0.1]), np.eye(3))):
        body.set_load(*load)
        mass = body.mass_matrix()
        np.testing.assert_allclose(mass, mass.T, atol=1e-12)
        assert np.linalg.eigvalsh(mass)[0] > 0.0
    # Two kilograms 0.1 m before the flange turn with joint 1, and their own inertia with them.
    body.set_load(0.0, np.zeros(3), np.zeros(9))
    bare = body.mass_matrix()
    body.set_load(2.0, np.array([0.0, 0.0, 0.1]), 0.05 * np.eye(3))
    reach = Kinematics(np.eye(4)).transform(np.array(HOME))[
        0, 3
    ]  # the hand points down: only x counts
    assert body.mass_matrix()[0, 0] - bare[0, 0] == pytest.approx(2.0 * reach**2 + 0.05, rel=1e-6)
    body.set_load(0.0, np.zeros(3), np.zeros(9))
    tau = np.array([3.0, -2.0, 1.0, 2.0, 0.5, -0.4, 0.2])
    expected = np.linalg.solve(bare + rotors, tau)
    body.step(tau)
    np.testing.assert_allclose(body.dq / 0.001, expected, rtol=0.02, atol=0.02)


def test_it_tracks_what_its_impedance_controller_is_told() -> None:
    body = Body.alone("fr3")
    start, rate = np.array(HOME), 2 * np.pi * 0.5
    worst = 0.0
    for k in range(1500):
        t = k * 0.001
        q_d = start + 0.3 * (1 - np.cos(rate * t))
        body.step(joint_impedance(q_d, np.full(7, 0.3 * rate * np.sin(rate * t)), body))
        worst = max(worst, float(np.abs(body.q - q_d).max()))
    assert worst < 0.005
    assert np.abs(body.tau_ext).max() < 1e-6


def test_the_impedance_controllers_stay_calm_everywhere() -> None:
    body = Body.alone("fr3")
    inside = [q * 0.8 + 0.2 * np.array(HOME) for q in random_poses(12)]
    for q in inside:
        body.place(q)
        if body.touching_itself():
            continue
        pose = body.forward()
        for _ in range(150):
            body.step(joint_impedance(q, STILL, body))
        np.testing.assert_allclose(body.q, q, atol=1e-3)
        for _ in range(300):
            body.step(cartesian_impedance(pose, np.zeros(6), q, body))
        np.testing.assert_allclose(body.forward(), pose, atol=2e-3)


def test_cartesian_impedance_is_as_stiff_as_told() -> None:
    body = Body.alone("fr3")
    pose, q = body.forward(), body.q
    body.push([12.0, 0.0, -9.0, 0.0, 0.0, 0.0])
    for _ in range(2500):
        body.step(cartesian_impedance(pose, np.zeros(6), q, body, (600, 600, 600, 30, 30, 30)))
    np.testing.assert_allclose(
        body.forward()[:3, 3] - pose[:3, 3], [12 / 600, 0, -9 / 600], atol=1e-3
    )


def test_a_push_shows_with_the_sign_of_the_fci() -> None:
    """Positive is what the robot does to its surroundings."""
    for body in (Body.alone("fr3"), mounted(0.7, 0.4)):
        wrench = np.array([5.0, -3.0, -8.0, 0.4, 0.2, -0.1])
        body.push(wrench)
        hold(body, 600)
        np.testing.assert_allclose(body.O_F_ext, -wrench, atol=0.05)
        np.testing.assert_allclose(body.tau_ext, -body.jacobian().T @ wrench, atol=0.02)
        # At rest the measured torque is gravity and what holds against the push.
        np.testing.assert_allclose(body.tau_J - body.gravity(), body.tau_ext, atol=0.1)
        body.push(None)
        hold(body, 600)
        assert np.abs(body.O_F_ext).max() < 0.05


def test_a_told_load_is_carried_against_gravity_on_a_leaning_arm() -> None:
    """Nothing hangs there: what carries it pushes the hand up, as seen from the base."""
    body = mounted(0.7, 0.4)
    body.set_load(0.8, [0.0, 0.0, 0.1034], np.zeros((3, 3)))
    hold(body, 600)
    base = body.data.body("left/link0").xmat.reshape(3, 3)
    np.testing.assert_allclose(body.O_F_ext[:3], base.T @ [0.0, 0.0, -0.8 * G], atol=0.05)
    np.testing.assert_allclose(body.O_F_ext[3:], 0.0, atol=0.05)


def test_the_wrench_is_zero_near_a_singularity() -> None:
    body = Body.alone("fr3")
    body.push([0.0, 0.0, -20.0, 0.0, 0.0, 0.0])
    # Nearly stretched out upwards.
    above = np.array([0.0, 0.0, 0.0, -0.12, 0.0, 3.3, 0.0])
    for q, singular in ((np.array(HOME), False), (above, True)):
        body.place(q)
        hold(body, 100, q)
        assert np.abs(body.tau_ext).max() > 1.0
        assert (not body.O_F_ext.any()) == singular


def grasping(mass: float) -> tuple[Body, mujoco.MjModel]:
    """An arm over a block between its open fingers, the block on a pedestal."""
    spec = arm_scene("fr3", visual=False)
    x, _, z = Kinematics().transform(np.array(HOME))[:3, 3]
    block = spec.worldbody.add_body(name="block", pos=(x, 0.0, z))
    block.add_freejoint()
    box = mujoco.mjtGeom.mjGEOM_BOX
    block.add_geom(type=box, size=(0.01, 0.02, 0.015), mass=mass, friction=(1.0, 0.02, 0.0001))
    spec.worldbody.add_geom(type=box, size=(0.02, 0.02, 0.01), pos=(x, 0.0, z - 0.025))
    model = spec.compile()
    return Body(model, mujoco.MjData(model)), model


def test_a_grasped_load_shows_until_the_robot_is_told_of_it() -> None:
    body, _ = grasping(0.5)
    hold(body, 50)
    body.drive_fingers(0.0, 0.1, 40.0)
    hold(body, 600)
    assert body.finger_width == pytest.approx(0.04, abs=1e-3)
    assert abs(body.finger_speed) < 1e-3
    assert abs(body.finger_force) == pytest.approx(40.0, abs=0.1)
    raised, follower = np.array(HOME), PoseFollower("fr3")
    pose = follower.pose(raised)
    for _ in range(500):
        pose[2, 3] += 0.0001
        new = follower.follow(raised, pose)
        body.step(joint_impedance(new, (new - raised) / 0.001, body))
        raised = new
    hold(body, 800, raised)
    assert body.data.body("block").xpos[2] > Kinematics().transform(np.array(HOME))[2, 3] + 0.04
    assert body.O_F_ext[2] == pytest.approx(0.5 * G, abs=0.15)
    body.set_load(0.5, [0.0, 0.0, 0.1034], np.zeros((3, 3)))
    hold(body, 800, raised)
    assert np.abs(body.O_F_ext[:3]).max() < 0.15
    # Let go of it: the robot still carries what it was told of, which pulls it upwards.
    body.drive_fingers(0.08, 0.2, 40.0)
    hold(body, 800, raised)
    assert body.O_F_ext[2] == pytest.approx(-0.5 * G, abs=0.15)


def test_fingers_keep_to_width_speed_and_force() -> None:
    body = Body.alone("fr3")
    assert body.finger_width == pytest.approx(0.08)
    body.drive_fingers(0.02, 0.05, 30.0)
    hold(body, 600)
    # 0.6 s at 0.05 m/s: half of the way.
    assert body.finger_width == pytest.approx(0.05, abs=0.002)
    assert body.finger_speed == pytest.approx(-0.05, abs=0.005)
    hold(body, 1000)
    assert body.finger_width == pytest.approx(0.02, abs=5e-4)
    body.drive_fingers(0.0, 0.1, 25.0)
    hold(body, 600)
    assert body.finger_width == pytest.approx(0.0, abs=5e-4)
    assert body.finger_force == pytest.approx(-25.0, abs=0.1)
    body.drive_fingers(0.06, 0.1, 25.0)
    hold(body, 300)
    body.stop_fingers()
    stopped = body.finger_width
    hold(body, 300)
    assert 0.02 < stopped < 0.04 and body.finger_width == pytest.approx(stopped, abs=1e-3)


def test_links_that_touch_each_other() -> None:
    body = Body.alone("fr3")
    assert not body.touching_itself()
    body.place(HOME, width=0.0)
    body.drive_fingers(0.0, 0.1, 40.0)
    hold(body, 50)
    assert not body.touching_itself(), "closed fingers are no self collision"
    body.place([0.0, -1.7, 0.0, -3.0, 0.0, 1.0, 0.8])
    assert body.touching_itself()


def test_two_arms_in_one_world() -> None:
    world = mujoco.MjSpec()
    for side, y in (("left/", 0.5), ("right/", -0.5)):
        frame = world.worldbody.add_frame(pos=(0.0, y, 0.0))
        world.attach(arm_scene("fr3", visual=False), prefix=side, frame=frame)
    configure(world)
    model = world.compile()
    data = mujoco.MjData(model)
    left, right = Body(model, data, "left/"), Body(model, data, "right/")
    target = np.array(HOME) + 0.1
    for _ in range(800):
        left.apply(joint_impedance(target, STILL, left))
        right.apply(joint_impedance(np.array(HOME), STILL, right))
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(left.q, target, atol=1e-3)
    np.testing.assert_allclose(right.q, HOME, atol=1e-3)
    assert not left.touching_itself() and not right.touching_itself()


def test_a_follower_finds_the_joints_of_poses() -> None:
    follower, q = PoseFollower("fr3"), np.array(HOME)
    pose = follower.pose(q)
    table = Kinematics()
    for k in range(500):
        pose[:3, 3] += [0.0001, 0.0002, -0.0001]
        elbow = None if k < 250 else float(q[2]) + 0.0002
        q = follower.follow(q, pose, elbow)
    np.testing.assert_allclose(table.transform(q), pose, atol=1e-6)
    before = q[2]
    q = follower.follow(q, pose, float(before) + 0.001)
    assert q[2] == pytest.approx(before + 0.001, abs=1e-6)
    np.testing.assert_allclose(table.transform(q), pose, atol=1e-5)
    twist = np.array([0.1, 0.0, 0.05, 0.0, 0.3, 0.0])
    ahead = table.transform(follower.follow_twist(q, twist))
    here = table.transform(q)
    np.testing.assert_allclose((ahead - here)[:3, 3], twist[:3] * 0.001, atol=1e-6)
    np.testing.assert_allclose(orientation_error(ahead, here), twist[3:] * 0.001, atol=1e-6)
