"""The model library that a FER serves: 30 C functions, compiled here at first use.

libfranka up to 0.17 loads its dynamics from a shared object that the robot sends. Names and
arguments are libfranka's (`libfcimodels.h`): poses O_T_J1..9 of the seven joints, the flange and
the end effector; Jacobians O_J_J1..9 in the base frame and Ji_J_J1..9 in the frame itself; mass
M_NE, Coriolis c_NE and gravity g_NE. Matrices are column-major. The dynamics are the recursive
Newton-Euler algorithm (Featherstone, "Rigid Body Dynamics Algorithms", 2008, ch. 5) over the
links of the MuJoCo model that plays the arm; the hand and the load come as arguments.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.franka.kinematics import FLANGE_M
from hardware.franka.limits import Model
from hardware.franka.virtual.scene import arm_scene
from robot_stack.errors import DeviceError, MissingDependencyError

__all__ = ["library", "source"]

Array = NDArray[np.float64]

COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120.0
_CODE = Path(__file__).with_suffix(".c")


def library(model: Model = "fer", cache: Path | None = None) -> bytes:
    """The compiled shared object, for the machine that this runs on.

    Kept in ``cache`` (the user's cache directory by default) under a name made of the source.
    MissingDependencyError without a C compiler, DeviceError when it fails.
    """
    text = source(model)
    folder = cache if cache is not None else _cache()
    name = hashlib.sha256(f"{platform.machine()}\n{text}".encode()).hexdigest()[:16]
    path = folder / f"franka-model-{name}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(text, path)
    return path.read_bytes()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "robot-stack"


def _compile(text: str, path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise MissingDependencyError(
            "the virtual FER compiles its model library at first use and found no C compiler "
            f"({', '.join(COMPILERS)}): sudo apt install gcc libc6-dev"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as build:
        code, built = Path(build) / "model.c", Path(build) / "model.so"
        code.write_text(text)
        options = ["-std=c99", "-O2", "-fPIC", "-shared"]
        command = [compiler, *options, "-o", str(built), str(code), "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{compiler} did not finish the FER's model library in {TIMEOUT_S:.0f} s"
            ) from None
        if done.returncode != 0:
            raise DeviceError(
                f"{compiler} could not build the FER's model library (are the C headers there? "
                f"sudo apt install libc6-dev): {done.stderr.strip()[-500:]}"
            )
        # Another process may build the same: whoever is last wins, with the same content.
        built.replace(path)


def source(model: Model = "fer") -> str:
    """The C source of the library with the arm's parameters."""
    compiled = arm_scene(model, visual=False).compile()
    bodies = [compiled.body(f"link{i + 1}") for i in range(7)]
    turns = [_rotation(body.quat) for body in bodies]
    inertias = []
    for body in bodies:
        axes = _rotation(body.iquat)
        inertias.append(axes @ np.diag(body.inertia) @ axes.T)
    parameters = (
        "#include <math.h>",
        _table("PLACE", [body.pos for body in bodies]),
        _table("TURN", [turn.ravel() for turn in turns]),
        f"static const double MASS[7] = {_row([body.mass[0] for body in bodies])};",
        _table("CENTRE", [body.ipos for body in bodies]),
        _table("INERTIA", [inertia.ravel() for inertia in inertias]),
        f"static const double FLANGE = {FLANGE_M!r};",
    )
    return "\n".join((*parameters, "", _CODE.read_text()))


def _rotation(quat: Array) -> Array:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat))
    return matrix.reshape(3, 3)


def _table(name: str, rows: list[Array]) -> str:
    body = ",\n    ".join(_row(row) for row in rows)
    return f"static const double {name}[{len(rows)}][{len(rows[0])}] = {{\n    {body}}};"


def _row(values: Array | list[float]) -> str:
    return "{" + ", ".join(repr(float(value)) for value in values) + "}"
