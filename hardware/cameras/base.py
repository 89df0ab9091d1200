"""What every camera driver shares: its spec, its options and being a context manager."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Self

from robot_stack.errors import DeviceError
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

__all__ = ["CameraDriver", "sleep_toward"]


def sleep_toward(due_ns: int, timeout_s: float) -> bool:
    """Sleep until monotonic time ``due_ns`` but at most ``timeout_s``; True when it is due."""
    wait_s = (due_ns - time.monotonic_ns()) / 1e9
    if wait_s > timeout_s:
        time.sleep(timeout_s)
        return False
    if wait_s > 0:
        time.sleep(wait_s)
    return True


class CameraDriver(ABC):
    """A camera that one process reads. The constructor opens nothing.

    After a DeviceError from ``read`` the caller disconnects and connects again; ``Frame.seq``
    goes on from where it was, so a gap in it always means frames that were lost.
    """

    def __init__(self, spec: CameraSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    @property
    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """What is known once connected, as JSON: ``driver``, ``serial``, ``intrinsics`` (fx, fy,
        cx, cy in pixels, model, coefficients), ``clock`` (what ``t_ns`` derives from)."""

    @abstractmethod
    def connect(self) -> None: ...

    @abstractmethod
    def disconnect(self) -> None: ...

    @abstractmethod
    def read(self, timeout_s: float) -> Frame | None: ...

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def _error(self, message: str) -> DeviceError:
        return DeviceError(f"camera {self._spec.name}: {message}")

    def _not_connected(self) -> DeviceError:
        return self._error("not connected; call connect first")
