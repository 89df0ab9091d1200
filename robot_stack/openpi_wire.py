"""openpi's wire: msgpack with numpy arrays inside, decoded safely, and observations by their keys.

An array is a map with the byte keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``, a numpy
scalar one with ``__npgeneric__`` (openpi-client ``msgpack_numpy``). Only plain numbers and fixed
text pass, sizes are checked before anything is made of them, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from robot_stack.contract import PolicyContract
from robot_stack.errors import MessageError, PolicyError
from robot_stack.messages import DTYPES, MAX_BYTES, MAX_DIMS

__all__ = ["LAYOUTS", "ObservationKeys", "observation_keys", "pack", "unpack"]

MAX_ENTRIES = 4096  # of a map or a list; observations hold a dozen
MAX_TEXT = 256  # characters of an array's element


def pack(value: Any) -> bytes:
    """msgpack bytes of plain values and numpy arrays; MessageError for what the wire lacks."""
    try:
        return bytes(msgpack.packb(value, default=_packed))
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"not to be sent as msgpack: {error}") from error


def _packed(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biufUS":
            raise ValueError(f"dtype {value.dtype}")
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": np.ascontiguousarray(value).data.cast("B") if value.size else b"",
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__}")


def unpack(data: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """What ``data`` holds; arrays are read-only views of it. MessageError names the fault."""
    if len(data) > max_bytes:
        raise MessageError(f"a message of {len(data)} bytes, allowed {max_bytes}")
    try:
        return msgpack.unpackb(
            data,
            object_hook=_unpacked,
            ext_hook=_no_extension,
            max_map_len=MAX_ENTRIES,
            max_array_len=MAX_ENTRIES,
        )
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MessageError(f"not msgpack as openpi speaks it: {error}") from error


def _no_extension(code: int, data: bytes) -> Any:
    raise MessageError(f"msgpack extension {code} (of {len(data)} bytes) is not part of this wire")


def _unpacked(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
        if not isinstance(data, bytes):
            raise MessageError("an array without its bytes")
        if (
            not isinstance(shape, list)
            or len(shape) > MAX_DIMS
            or not all(type(n) is int and n >= 0 for n in shape)
        ):
            raise MessageError(f"an array without a valid shape ({shape!r:.60})")
        wanted = math.prod(shape) * dtype.itemsize
        if wanted != len(data):
            raise MessageError(
                f"an array of shape {tuple(shape)} needs {wanted} bytes, {len(data)} were sent"
            )
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in value:
        dtype, item = _dtype(value), value.get(b"data")
        if not isinstance(item, (bool, int, float, str, bytes)):
            raise MessageError(f"a numpy scalar of {type(item).__name__}")
        try:
            return dtype.type(item)
        except (ValueError, OverflowError, TypeError) as error:
            raise MessageError(f"{item!r:.60} is no {dtype}: {error}") from error
    return value


def _dtype(value: Mapping[Any, Any]) -> np.dtype[Any]:
    code = value.get(b"dtype")
    if isinstance(code, str):
        if code in DTYPES:
            return np.dtype(code)
        if code[:2] in ("<U", "|S") and code[2:].isdecimal() and 0 < int(code[2:]) <= MAX_TEXT:
            return np.dtype(code)
    raise MessageError(
        f"an array of dtype {code!r:.60}; allowed: {', '.join(sorted(DTYPES))} and short text"
    )


@dataclass(frozen=True, slots=True)
class ObservationKeys:
    """Where an observation's parts stand in a message: a key, or keys of nested maps with ``/``.

    ``state`` are keys and how many values each holds (-1: the rest); together they are the state.
    A camera's images stand under ``images`` with its name for ``{camera}``, or under
    ``renamed[camera]``. ``planes``: images are (3, H, W), not (H, W, 3).
    """

    state: tuple[tuple[str, int], ...] = (("observation/state", -1),)
    images: str = "observation/images/{camera}"
    planes: bool = False
    nested: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    def image(self, camera: str) -> str:
        """The key of a camera's images."""
        return self.renamed.get(camera) or self.images.format(camera=camera)

    def names(self, contract: PolicyContract) -> list[str]:
        """Every key that an observation for this policy has."""
        return [
            *(key for key, _ in self.state),
            *(self.image(camera.name) for camera in contract.cameras),
        ]

    def read(
        self, message: Mapping[Any, Any], contract: PolicyContract
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.uint8]]]:
        """State (n, S) and images (n, H, W, 3) by camera, n being 1 or the contract's To.

        PolicyError ``bad_observation`` says what is missing or of another shape.
        """
        parts = []
        for key, size in self.state:
            part = np.asarray(self._find(message, key, contract))
            if part.dtype.kind not in "iuf" or part.ndim not in (0, 1, 2):
                raise _refused(f"{key} must be numbers (S,) or (To, S)")
            part = part.reshape(part.shape[0] if part.ndim == 2 else 1, -1)
            if size >= 0 and part.shape[1] != size:
                raise _refused(f"{key} must hold {size} values, not {part.shape[1]}")
            parts.append(part)
        moments = {len(part) for part in parts}
        wanted = len(contract.state)
        width = sum(part.shape[1] for part in parts)
        if len(moments) != 1 or width != wanted:
            keys = " and ".join(key for key, _ in self.state)
            raise _refused(
                f"{keys} must hold {wanted} values ({_listed([f.name for f in contract.state])}), "
                f"not {width}"
            )
        state = np.concatenate(parts, axis=1).astype(np.float32)
        images = {}
        for camera in contract.cameras:
            key, size3 = self.image(camera.name), (camera.height, camera.width, 3)
            image = np.asarray(self._find(message, key, contract))
            if self.planes and image.ndim in (3, 4):
                image = np.moveaxis(image, -3, -1)
            if image.ndim == 3:
                image = image[None]
            if image.dtype != np.uint8 or image.shape[1:] != size3:
                raise _refused(
                    f"{key} must be uint8 {size3} RGB"
                    + (", sent as (3, H, W)" if self.planes else "")
                    + f", not {image.dtype} {image.shape[1:]}: resize before sending"
                )
            images[camera.name] = image
            moments.add(len(image))
        if len(moments) != 1 or moments - {1, contract.observations}:
            raise _refused(
                f"an observation is one moment or {contract.observations} of them, the same "
                f"number in every key, not {sorted(moments)}"
            )
        return state, images

    def _find(self, message: Mapping[Any, Any], key: str, contract: PolicyContract) -> Any:
        if key in message:
            return message[key]
        found: Any = message
        for part in key.split("/"):
            if not isinstance(found, Mapping) or part not in found:
                have = _listed([str(name) for name in message])
                raise _refused(
                    f"no {key!r} in the observation (it has {have}); this policy needs "
                    f"{', '.join(self.names(contract))}"
                )
            found = found[part]
        return found

    def write(
        self, state: NDArray[np.float32], images: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, Any]:
        """The message for one moment or several: state (S,) or (To, S), images (H, W, 3) or
        (To, H, W, 3)."""
        message: dict[str, Any] = {}
        at = 0
        fixed = sum(size for _, size in self.state if size >= 0)
        for key, size in self.state:
            count = size if size >= 0 else state.shape[-1] - fixed
            self._put(message, key, state[..., at : at + count])
            at += count
        for camera, image in images.items():
            self._put(
                message, self.image(camera), np.moveaxis(image, -1, -3) if self.planes else image
            )
        return message

    def _put(self, message: dict[str, Any], key: str, value: Any) -> None:
        if not self.nested:
            message[key] = value
            return
        *path, last = key.split("/")
        for part in path:
            message = message.setdefault(part, {})
        message[last] = value


# The keys of openpi's examples: its documented flat form, ALOHA's and DROID's (also RoboArena's).
LAYOUTS: dict[str, ObservationKeys] = {
    "openpi": ObservationKeys(),
    "aloha": ObservationKeys((("state", -1),), "images/{camera}", planes=True, nested=True),
    "droid": ObservationKeys(
        (("observation/joint_position", -1), ("observation/gripper_position", 1)),
        "observation/{camera}",
    ),
}


def observation_keys(layout: str, renamed: Mapping[str, str] | None = None) -> ObservationKeys:
    """The keys of a layout, with some cameras' keys replaced; PolicyError for unknown layouts."""
    if layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise PolicyError(f"no observation layout is called {layout!r} (known: {known})")
    base = LAYOUTS[layout]
    return ObservationKeys(base.state, base.images, base.planes, base.nested, dict(renamed or {}))


def _refused(text: str) -> PolicyError:
    return PolicyError(text, "bad_observation")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing"
