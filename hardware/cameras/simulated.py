"""A camera of a virtual station: draws the world's physics state with MuJoCo, in its own process.

The world process publishes its full ``qpos``; what is drawn is the newest state, and ``t_ns`` is
that state's time, as a real camera's would be the moment the light fell in. Drawing takes about
10 ms a 480x640 frame on one core without a GPU.
"""

from __future__ import annotations

import ctypes.util
import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if "MUJOCO_GL" not in os.environ:  # MuJoCo chooses its renderer as it is imported
    os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "osmesa"
    if os.environ["MUJOCO_GL"] == "osmesa":
        logging.getLogger("camera").warning(
            "libEGL is not installed: simulated cameras draw with OSMesa, which is slower; "
            "`apt install libegl1` brings EGL"
        )
# Mesa's software renderer would start a thread a core in every camera process.
os.environ.setdefault("LP_NUM_THREADS", "1")
import mujoco

from hardware.cameras.base import CameraDriver, sleep_toward
from hardware.worlds.scenes import Scene, named_scene, scene_of
from robot_stack.config import WorldSection, parse
from robot_stack.errors import SharedMemoryError
from robot_stack.records import world_path
from robot_stack.shared_memory import Ring
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

if TYPE_CHECKING:
    from robot_stack.config import CameraConfig, Station

__all__ = ["SimulatedCamera", "SimulatedOptions"]

SILENCE_S = 0.5  # after which a restarted world is looked for


@dataclass(frozen=True)
class SimulatedOptions:
    """``camera``: what to look through, by the station's name (ALOHA's ``cam_high``) or the model's
    (``top``); by default the camera of the same name."""

    camera: str | None = None


class SimulatedCamera(CameraDriver):
    """Draws at ``spec.fps`` or as fast as the machine affords; a state is drawn once only, so a
    world that stands still or has died gives no frames."""

    def __init__(
        self,
        spec: CameraSpec,
        station: str,
        camera: str | None = None,
        scene: Scene | None = None,
    ) -> None:
        super().__init__(spec)
        self._station = station
        self._scene = scene or named_scene(WorldSection.scene)
        self._view = self._scene.cameras.get(camera or spec.name, camera or spec.name)
        self._world: Ring | None = None
        self._data: Any = None
        self._renderer: Any = None
        self._intrinsics: dict[str, Any] | None = None
        self._seq = 0
        self._due_ns = 0
        self._shown_t_ns = -1
        self._news = 0.0

    @classmethod
    def from_config(cls, config: CameraConfig, station: Station) -> Self:
        """Options: ``SimulatedOptions``."""
        options = parse(SimulatedOptions, config.options, f"cameras.{config.name}.options")
        return cls(config.spec, station.station, options.camera, scene_of(station))

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "driver": "simulated",
            "serial": None,
            "view": self._view,
            "intrinsics": self._intrinsics,
            "clock": "physics state, monotonic",
        }

    def connect(self) -> None:
        """Attach to the world and make the renderer. DeviceError when there is no world yet, no
        such view, or no OpenGL."""
        self.disconnect()
        try:
            self._world = Ring(world_path(self._station))
        except SharedMemoryError as error:
            raise self._error(f"no world to look at: {error}") from error
        model = self._scene.render_model()
        views = [model.camera(i).name for i in range(model.ncam)]
        if self._view not in views:
            raise self._error(
                f"the scene has no camera {self._view!r} (it has: {', '.join(views)})"
            )
        nq = self._world.dtype["qpos"].shape
        if nq != (model.nq,):
            raise self._error(f"the world publishes qpos of shape {nq}, the scene has {model.nq}")
        fovy = math.radians(model.camera(self._view).fovy[0])
        focal = self._spec.height / 2 / math.tan(fovy / 2)
        self._intrinsics = {
            "fx": focal,
            "fy": focal,
            "cx": self._spec.width / 2,
            "cy": self._spec.height / 2,
            "model": "none",
            "coefficients": [0.0] * 5,
        }
        model.vis.global_.offwidth = self._spec.width
        model.vis.global_.offheight = self._spec.height
        self._data = mujoco.MjData(model)
        try:
            self._renderer = mujoco.Renderer(model, self._spec.height, self._spec.width)
        except Exception as error:  # each OpenGL binding has its own
            raise self._error(
                f"cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); "
                "install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa"
            ) from error
        self._due_ns = time.monotonic_ns()
        self._news = time.monotonic()

    def disconnect(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._world is not None:
            self._world.close()
            self._world = None

    def read(self, timeout_s: float) -> Frame | None:
        """The world as it is at the next deadline; None while it stands still."""
        if self._world is None or self._renderer is None:
            raise self._not_connected()
        if not sleep_toward(self._due_ns, timeout_s):
            return None
        now_ns = time.monotonic_ns()
        period_ns = round(1e9 / self._spec.fps)
        # Deadlines stay on their grid; those that passed while drawing are skipped, and one that
        # comes at once after a late frame: a camera's frames lie apart.
        self._due_ns += ((now_ns - self._due_ns) // period_ns + 1) * period_ns
        if self._due_ns - now_ns < period_ns // 2:
            self._due_ns += period_ns
        newest = self._world.latest()
        if newest is None or int(newest[1]["t_ns"]) == self._shown_t_ns:
            if time.monotonic() - self._news > SILENCE_S:
                self._world.reopen()
            return None
        self._news = time.monotonic()
        record = newest[1]
        self._shown_t_ns = int(record["t_ns"])
        frame = self._draw(record["qpos"])
        self._seq += 1
        return frame

    def _draw(self, qpos: Any) -> Frame:
        data, renderer = self._data, self._renderer
        data.qpos[:] = qpos
        mujoco.mj_forward(renderer.model, data)
        renderer.update_scene(data, self._view)
        image = renderer.render()
        depth = None
        if self._spec.depth:
            renderer.enable_depth_rendering()
            metres = renderer.render()
            renderer.disable_depth_rendering()
            millimetres = np.rint(metres * 1000)
            # 0 is "nothing seen", as real depth cameras have it for what is too far.
            depth = np.where(millimetres > 65535, 0, millimetres).astype(np.uint16)
        return Frame(self._shown_t_ns, self._seq, image, depth)
