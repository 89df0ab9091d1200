"""The models that the virtual arms serve, as the client libraries of PyPI compute with them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from hardware.franka.limits import Model
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.process import FrankaProcess

# Each in a process of its own: libfranka waits without releasing the interpreter, and two
# versions of it do not share one.
PYLIBFRANKA = """
import json, sys
import pylibfranka
robot = pylibfranka.Robot(sys.argv[1], pylibfranka.RealtimeConfig.kIgnore)
robot.set_load(1.2, [0.01, 0.02, 0.05], [0.003, 0, 0, 0, 0.004, 0, 0, 0, 0.005])
state, model = robot.read_once(), robot.load_model()
state = robot.read_once()
print(json.dumps({
    "q": list(state.q), "mass": list(model.mass(state)), "gravity": list(model.gravity(state)),
    "jacobian": list(model.zero_jacobian(state)), "pose": list(state.O_T_EE),
}))
"""
PANDA = """
import json, sys
from panda_py import libfranka
robot = libfranka.Robot(sys.argv[1], libfranka.RealtimeConfig.kIgnore)
robot.set_load(1.2, [0.01, 0.02, 0.05], [0.003, 0, 0, 0, 0.004, 0, 0, 0, 0.005])
state, model = robot.read_once(), robot.load_model()
state = robot.read_once()
frame = libfranka.Frame.kEndEffector
print(json.dumps({
    "q": list(state.q), "mass": list(model.mass(state)), "gravity": list(model.gravity(state)),
    "jacobian": list(model.zero_jacobian(frame, state)), "pose": list(model.pose(frame, state)),
}))
"""


def computed(version: int, script: str) -> dict[str, Any]:
    with FrankaProcess(5 if version == 5 else 10) as arm:
        done = subprocess.run(
            [sys.executable, "-c", script, arm.address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "model", "script"), [(10, "fr3", PYLIBFRANKA), (5, "fer", PANDA)]
)
def test_a_client_computes_what_the_body_does(version: int, model: Model, script: str) -> None:
    answer = computed(version, script)
    body = Body.alone(model)
    body.set_load(1.2, [0.01, 0.02, 0.05], np.diag([0.003, 0.004, 0.005]))
    body.place(answer["q"])
    # The client's hand has one place for its fingers: half open.
    mass = np.array(answer["mass"]).reshape(7, 7)
    np.testing.assert_allclose(mass, body.mass_matrix(), atol=2e-4)
    np.testing.assert_allclose(answer["gravity"], body.gravity(), atol=1e-4)
    jacobian = np.array(answer["jacobian"]).reshape(7, 6).T
    np.testing.assert_allclose(jacobian, body.jacobian(), atol=1e-5)
    pose = np.array(answer["pose"]).reshape(4, 4).T
    np.testing.assert_allclose(pose, body.forward(), atol=1e-5)
