"""Draws the world for its page: the newest published state, as JPEG, from any side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.worlds.aloha import CAMERAS, SIDES, load_render_model
from robot_stack.config import within
from robot_stack.errors import SharedMemoryError
from robot_stack.records import world_path
from robot_stack.shared_memory import Ring

__all__ = ["View", "WorldView"]

WIDTH, HEIGHT, JPEG_QUALITY = 800, 600, 80
LOOK_AT = (0.0, 0.52, 0.14)
# A leader is drawn as a ghost where a joint is farther than this from its follower.
APART_RAD = 0.12
GHOST = (0.98, 0.57, 0.24, 0.35)


@dataclass(frozen=True)
class View:
    """From where: one of ALOHA's cameras, or ``orbit`` with its angles (deg) and distance (m)."""

    name: str = "orbit"
    azimuth: float = within(-3600.0, 3600.0, "deg", default=90.0)
    elevation: float = within(-89.0, 10.0, "deg", default=-30.0)
    distance: float = within(0.3, 3.0, "m", default=1.55)

    def __post_init__(self) -> None:
        if self.name != "orbit" and self.name not in CAMERAS:
            raise ValueError(f"no view {self.name!r} (known: orbit, {', '.join(CAMERAS)})")


class WorldView:
    """One renderer; use it from one thread only, as OpenGL demands."""

    def __init__(self, station: str) -> None:
        self._station = station
        self._ring: Ring | None = None
        self._model = load_render_model()
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = WIDTH, HEIGHT
        self._data = mujoco.MjData(self._model)
        self._ghost = mujoco.MjData(self._model)
        self._arm_of_geom = np.array([self._arm_of(i) for i in range(self._model.ngeom)])
        self._renderer = mujoco.Renderer(self._model, HEIGHT, WIDTH)
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = LOOK_AT

    def _arm_of(self, geom: int) -> int:
        name = self._model.body(self._model.geom_bodyid[geom]).name
        sides = [side for side in SIDES if name.startswith(f"vx300s_{side}/")]
        return SIDES.index(sides[0]) if sides else -1

    def draw(self, view: View, leaders: NDArray[np.float64] | None = None) -> bytes | None:
        """The newest state as JPEG (600, 800, 3), or None while no world runs.

        ``leaders`` (2, 6) are the leaders' joints in rad: a leader that its follower is not with
        is drawn too, transparent, on the follower's base.
        """
        record = self._newest()
        if record is None:
            return None
        self._data.qpos[:] = record["qpos"]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        camera: Any = CAMERAS.get(view.name, self._camera)
        self._camera.azimuth, self._camera.elevation = view.azimuth, view.elevation
        self._camera.distance = view.distance
        self._renderer.update_scene(self._data, camera)
        if leaders is not None:
            self._draw_ghosts(leaders)
        image: NDArray[np.uint8] = self._renderer.render()
        ok, encoded = cv2.imencode(
            ".jpg", image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
        )
        return encoded.tobytes() if ok else None

    def _draw_ghosts(self, leaders: NDArray[np.float64]) -> None:
        ghost, scene = self._ghost, self._renderer.scene
        ghost.qpos[:] = self._data.qpos
        for arm in range(2):
            ghost.qpos[8 * arm : 8 * arm + 6] = leaders[arm]
        way = np.abs(ghost.qpos[:16] - self._data.qpos[:16]).reshape(2, 8)
        apart = (way > APART_RAD).any(axis=1)
        if not apart.any():
            return
        mujoco.mj_kinematics(self._model, ghost)
        first = scene.ngeom
        mujoco.mjv_addGeoms(
            self._model,
            ghost,
            mujoco.MjvOption(),
            mujoco.MjvPerturb(),
            mujoco.mjtCatBit.mjCAT_DYNAMIC,
            scene,
        )
        for geom in scene.geoms[first : scene.ngeom]:
            arm = self._arm_of_geom[geom.objid]
            geom.rgba[:] = GHOST
            if arm < 0 or not apart[arm]:
                geom.rgba[3] = 0.0

    def _newest(self) -> Any | None:
        try:
            if self._ring is None:
                self._ring = Ring(world_path(self._station))
            elif self._ring.closed and not self._ring.reopen():
                return None
            newest = self._ring.latest()
        except SharedMemoryError:
            return None
        return None if newest is None else newest[1]

    def close(self) -> None:
        """Give the renderer back."""
        self._renderer.close()
        if self._ring is not None:
            self._ring.close()
