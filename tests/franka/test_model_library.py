"""The FER's compiled model library against MuJoCo, function by function."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.kinematics import HAND_TCP
from hardware.franka.limits import FER
from hardware.franka.virtual import model_library
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.model_library import library
from hardware.franka.virtual.scene import arm_scene
from robot_stack.errors import DeviceError, MissingDependencyError

Array = NDArray[np.float64]

# The 30 functions that libfranka 0.9 looks up before it gives a Model to anybody.
SYMBOLS = (
    [f"Ji_J_J{k}" for k in range(1, 10)]
    + [f"O_J_J{k}" for k in range(1, 10)]
    + [f"O_T_J{k}" for k in range(1, 10)]
    + ["M_NE", "c_NE", "g_NE"]
)
GRAVITY = np.array([0.4, -0.3, -9.81])
CARRIED_MASS, CARRIED_COM = 1.3, np.array([0.02, -0.03, 0.07])
CARRIED_INERTIA = np.array([[0.004, 0.0005, 0.0], [0.0005, 0.006, 0.0002], [0.0, 0.0002, 0.003]])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library as a client gets it: bytes, written to a file and loaded."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "received.so"
    path.write_bytes(library(cache=folder))
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def arm() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The arm without its hand, and what it carries as a body of its own on link 7."""
    spec = arm_scene("fer", visual=False)
    for name in ("left_finger", "right_finger", "hand"):
        spec.delete(spec.body(name))
    carried = spec.body("link7").add_body(name="carried", pos=(0.0, 0.0, 0.107))
    carried.mass, carried.ipos = CARRIED_MASS, CARRIED_COM
    carried.fullinertia = CARRIED_INERTIA[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    carried.explicitinertial = True
    for body in spec.bodies:
        body.gravcomp = 0.0
    for i in range(7):
        spec.joint(f"joint{i + 1}").armature = 0.0
    model = spec.compile()
    model.opt.gravity = GRAVITY
    return model, mujoco.MjData(model)


def poses(n: int = 20) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(4)
    return [(rng.uniform(FER.q_lower, FER.q_upper), rng.uniform(-2, 2, 7)) for _ in range(n)]


def call(function: Callable[..., object], size: int, *arguments: Array | float) -> Array:
    out = np.full(size, np.nan)
    pointers: list[object] = []
    keep = []
    for argument in (*arguments, out):
        if isinstance(argument, float):
            pointers.append(ctypes.c_double(argument))
            continue
        array = np.ascontiguousarray(argument) if argument is not out else out
        keep.append(array)
        pointers.append(array.ctypes.data_as(ctypes.POINTER(ctypes.c_double)))
    function.restype = None  # type: ignore[attr-defined]
    function(*pointers)
    return out


def test_every_symbol_is_there(shared: ctypes.CDLL) -> None:
    assert len(SYMBOLS) == 30
    for name in SYMBOLS:
        assert getattr(shared, name)


def test_mass_coriolis_and_gravity(
    shared: ctypes.CDLL, arm: tuple[mujoco.MjModel, mujoco.MjData]
) -> None:
    model, data = arm
    inertia = np.asfortranarray(CARRIED_INERTIA).ravel("F")
    full = np.zeros((7, 7))
    for q, dq in poses():
        data.qpos[:], data.qvel[:] = q, dq
        mujoco.mj_forward(model, data)
        mujoco.mj_fullM(model, full, data.qM)
        mass = call(shared.M_NE, 49, q, inertia, CARRIED_MASS, CARRIED_COM).reshape(7, 7)
        np.testing.assert_allclose(mass, full, atol=1e-9)
        gravity = call(shared.g_NE, 7, q, GRAVITY, CARRIED_MASS, CARRIED_COM)
        coriolis = call(shared.c_NE, 7, q, dq, inertia, CARRIED_MASS, CARRIED_COM)
        np.testing.assert_allclose(gravity + coriolis, data.qfrc_bias, atol=1e-8)
        data.qvel[:] = 0.0
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(gravity, data.qfrc_bias, atol=1e-8)


def test_poses_and_jacobians(shared: ctypes.CDLL) -> None:
    body = Body.alone("fer")
    model, data = body.model, body.data
    frame = HAND_TCP @ np.array(
        [[0.0, -1.0, 0.0, 0.01], [1.0, 0.0, 0.0, -0.02], [0.0, 0.0, 1.0, 0.05], [0, 0, 0, 1.0]]
    )
    column_major = frame.ravel("F")
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for q, _ in poses():
        body.place(q)
        for k in range(1, 10):
            # 8 is the flange, 9 the end effector.
            end = np.eye(4) if k < 9 else frame
            link = int(model.body(f"link{min(k, 7)}").id)
            local = np.eye(4)
            if k >= 8:
                local[2, 3] = 0.107
                local = local @ end
            expected = np.eye(4)
            expected[:3, :3] = data.xmat[link].reshape(3, 3)
            expected[:3, 3] = data.xpos[link]
            expected = expected @ local
            extra = (column_major,) if k == 9 else ()
            pose = call(getattr(shared, f"O_T_J{k}"), 16, q, *extra).reshape(4, 4).T
            np.testing.assert_allclose(pose, expected, atol=1e-9)
            mujoco.mj_jac(model, data, linear, angular, expected[:3, 3], link)
            jacobian = np.vstack([linear[:, :7], angular[:, :7]])
            arguments = () if k == 1 else (q, *extra)
            zero = call(getattr(shared, f"O_J_J{k}"), 42, *arguments).reshape(7, 6).T
            turned = call(getattr(shared, f"Ji_J_J{k}"), 42, *arguments).reshape(7, 6).T
            np.testing.assert_allclose(zero, jacobian, atol=1e-9)
            back = np.kron(np.eye(2), expected[:3, :3].T)
            np.testing.assert_allclose(turned, back @ jacobian, atol=1e-9)


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library(cache=tmp_path / "new")
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".so"]
    monkeypatch.setattr(model_library, "COMPILERS", ())
    assert library(cache=tmp_path / "new") == first


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="sudo apt install gcc"):
        library(cache=tmp_path / "empty")


def test_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    shell = shutil.which("sh")
    broken.write_text(f"#!{shell}\necho 'math.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(DeviceError, match=r"libc6-dev.*math\.h"):
        library(cache=tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
