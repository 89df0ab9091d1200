"""Simulated worlds behind virtual devices: scenes, the people in them, and their process."""

import contextlib
import ctypes
import os

# MuJoCo chooses its renderer as it is first imported, by whichever module of a process that is:
# without a display its own choice, GLFW, can only fail. Where there is no EGL, who draws decides.
if "MUJOCO_GL" not in os.environ:
    with contextlib.suppress(OSError):
        ctypes.CDLL("libEGL.so.1")
        os.environ["MUJOCO_GL"] = "egl"
