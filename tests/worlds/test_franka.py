"""The pick-and-place scene: its places, its judgement of a cube put down by hand, and its looks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.cameras.simulated import SimulatedCamera
from hardware.worlds.franka import (
    CAMERAS,
    CUBE_SIDE,
    FrankaPickPlace,
    franka_pick_place,
    load_render_model,
    sample_places,
)
from hardware.worlds.franka_hands import joints_nearer
from hardware.worlds.scenes import scene_of
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, RegistryError
from robot_stack.records import world_path, world_record
from robot_stack.shared_memory import RingWriter
from robot_stack.spec import CameraSpec

NQ = 18
HOLDING = np.zeros(7)  # gravity is compensated: no torque holds a resting arm


def lie(world: FrankaPickPlace, x: float, y: float, z: float = CUBE_SIDE / 2) -> None:
    """A hand puts the cube there and takes itself away."""
    world.place(np.array([x, y, z, 1.0, 0.0, 0.0, 0.0]))


def run(world: FrankaPickPlace, seconds: float) -> None:
    for _ in range(round(seconds * 100)):
        for _ in range(10):
            world.body.step(HOLDING)
        world.look()


def reach(world: FrankaPickPlace, x: float, y: float, z: float) -> None:
    """The open gripper stands there, pointing down."""
    q = world.body.q
    for _ in range(200):
        q = joints_nearer(q, np.array([x, y, z, 0.0, 1.0, 0.0, 0.0]))
    world.body.place(q)
    np.testing.assert_allclose(world.fingertips[:3], (x, y, z), atol=1e-3)


@pytest.fixture
def world() -> FrankaPickPlace:
    return FrankaPickPlace(seed=3)


def test_a_seed_always_gives_the_same_places_and_another_seed_others() -> None:
    cube, square = sample_places(5)
    again, _ = sample_places(5)
    other, _ = sample_places(6)
    np.testing.assert_array_equal(cube, again)
    assert np.abs(cube - other).max() > 0.005
    assert cube.shape == (7,)
    assert square.shape == (2,)


def test_places_are_within_reach_and_apart() -> None:
    for seed in range(200):
        cube, square = sample_places(seed)
        for x, y in (cube[:2], square):
            assert 0.40 <= np.hypot(x, y) <= 0.66
        assert np.linalg.norm(cube[:2] - square) > 0.19
        assert np.linalg.norm(cube[3:]) == pytest.approx(1.0)


def test_the_cube_stays_where_it_lies_and_the_arm_where_it_stands(world: FrankaPickPlace) -> None:
    q, state = world.body.q, world.env_state
    run(world, 1.0)
    np.testing.assert_allclose(world.body.q, q, atol=2e-3)
    np.testing.assert_allclose(world.env_state, state, atol=1e-3)
    assert world.reward() == 0
    assert not world.success


def test_a_cube_on_the_square_is_a_success_after_half_a_second(world: FrankaPickPlace) -> None:
    lie(world, *world.env_state[7:9])
    run(world, 0.4)
    assert world.reward() == 4
    assert not world.success
    run(world, 0.3)
    assert world.success
    world.reset(world.seed)
    world.look()
    assert not world.success


@pytest.mark.parametrize(("dx", "dy", "on"), [
    (0.025, 0.0, True),
    (0.0, -0.025, True),
    (0.035, 0.0, False),  # a corner of a turned cube could stand beside it
    (0.0, 0.035, False),
    (-0.2, 0.0, False),
])  # fmt: skip
def test_the_whole_cube_must_stand_on_the_square(
    world: FrankaPickPlace, dx: float, dy: float, on: bool
) -> None:
    x, y = world.env_state[7:9]
    lie(world, x + dx, y + dy)
    run(world, 0.7)
    assert world.success is on


def test_a_falling_cube_is_no_success_before_it_lies(world: FrankaPickPlace) -> None:
    x, y = world.env_state[7:9]
    lie(world, x, y, 0.2)
    run(world, 0.15)
    assert world.reward() == 0
    run(world, 1.0)
    assert world.success


def test_a_sliding_cube_does_not_lie_yet(world: FrankaPickPlace) -> None:
    lie(world, *world.env_state[7:9])
    world.data.qvel[11] = 0.2
    assert world.reward() == 0
    world.data.qvel[11:17] = 0.0, 0.0, 0.0, 0.0, 0.0, 2.0
    assert world.reward() == 0
    world.data.qvel[11:17] = 0.0
    assert world.reward() == 4


def test_the_gripper_must_have_let_go_and_drawn_back(world: FrankaPickPlace) -> None:
    x, y = world.env_state[7:9]
    lie(world, x, y)
    reach(world, x, y, CUBE_SIDE / 2 + 0.05)
    run(world, 0.7)
    assert world.reward() == 3
    assert not world.success
    reach(world, x, y, CUBE_SIDE / 2 + 0.08)
    run(world, 0.7)
    assert world.success


def test_reset_moves_cube_and_square_and_leaves_the_arm(world: FrankaPickPlace) -> None:
    q, before = world.body.q, world.env_state
    world.reset(11)
    np.testing.assert_array_equal(world.body.q, q)
    cube, square = sample_places(11)
    np.testing.assert_array_equal(world.env_state, [*cube, *square])
    assert np.abs(world.env_state - before).max() > 0.01
    assert world.seed == 11


def test_the_render_model_draws_the_worlds_state(world: FrankaPickPlace) -> None:
    model = load_render_model()
    assert model.nq == world.model.nq == NQ
    assert [model.joint(i).name for i in range(model.njnt)] == [
        world.model.joint(i).name for i in range(world.model.njnt)
    ]
    assert {model.camera(i).name for i in range(model.ncam)} >= set(CAMERAS.values())


def test_the_shoulder_camera_sees_the_cube_where_it_is(
    world: FrankaPickPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    spec = CameraSpec("cam_shoulder", 320, 240, 100.0)
    middles = []
    with (
        RingWriter(world_path("lab"), world_record(NQ, 9), 8) as ring,
        SimulatedCamera(spec, "lab", scene=franka_pick_place()) as camera,
    ):
        for t, y in enumerate((-0.15, 0.15)):
            lie(world, 0.5, y)
            with ring.writing() as record:
                record["t_ns"], record["qpos"] = t + 1, world.data.qpos
            image = picture(camera)
            rows, columns = np.nonzero(image[:, :, 0] - image[:, :, 1] > 60)
            assert len(rows) > 30
            middles.append(columns.mean())
    assert middles[1] < middles[0] - 30  # the robot's left is the picture's


def picture(camera: SimulatedCamera) -> NDArray[np.int_]:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        frame = camera.read(0.1)
        if frame is not None:
            return frame.image.astype(np.int_)
    raise AssertionError("no frame")


def test_a_station_names_its_scene(tmp_path: Path) -> None:
    file = tmp_path / "station.yaml"
    text = (
        "schema: 1\nstation: lab\nrobots:\n  arm: {driver: aloha}\ngroups:\n  g: {robots: [arm]}\n"
    )
    file.write_text(text)
    with pytest.raises(ConfigError, match="no `world` section"):
        scene_of(load_station(file))
    file.write_text(text + "world: {scene: franka_pick_place}\n")
    assert scene_of(load_station(file)).process == "hardware.worlds.franka_process"
    file.write_text(text + "world: {scene: franka_pick_plaice}\n")
    with pytest.raises(RegistryError, match="did you mean 'franka_pick_place'"):
        scene_of(load_station(file))
