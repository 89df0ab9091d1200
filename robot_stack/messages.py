"""The wire of control plane and policy server: versioned multipart messages, numpy in and out.

Frame 0 is ``RTS`` + one version byte + a JSON header; each further frame is one array's raw
little-endian bytes, described in the header. Only plain numeric dtypes pass, sizes are capped
before anything is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import MessageError

__all__ = ["VERSION", "Message", "decode", "encode"]

VERSION = 1
MAGIC = b"RTS"
DTYPES = frozenset(
    ["|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"]
)
MAX_HEADER = 64 * 1024
MAX_ARRAYS = 64
MAX_BYTES = 64 * 1024 * 1024
MAX_DIMS = 8
JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Message:
    """``kind`` names the request or reply, ``id`` pairs them, ``body`` is JSON, arrays are raw."""

    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    id: int = 0


def encode(message: Message) -> list[bytes | memoryview]:
    """Frames of a message; array frames are views of the (contiguous) arrays, not copies."""
    described = []
    buffers: list[bytes | memoryview] = []
    for name, array in message.arrays.items():
        plain = np.ascontiguousarray(array)
        if plain.dtype.str not in DTYPES:
            raise MessageError(
                f"array {name!r} has dtype {array.dtype}; allowed: {', '.join(sorted(DTYPES))}"
            )
        described.append({"name": name, "dtype": plain.dtype.str, "shape": array.shape})
        buffers.append(plain.reshape(-1).view(np.uint8).data if plain.size else b"")
    header = {"kind": message.kind, "id": message.id, "body": message.body, "arrays": described}
    try:
        text = JSON.encode(header)
    except (TypeError, ValueError) as error:
        raise MessageError(
            f"the body of {message.kind!r} is not plain finite JSON: {error}"
        ) from error
    return [MAGIC + bytes([VERSION]) + text.encode(), *buffers]


def decode(frames: Sequence[bytes | memoryview], *, max_bytes: int = MAX_BYTES) -> Message:
    """The message in ``frames``; its arrays are read-only views. MessageError names the fault."""
    if not frames:
        raise MessageError("an empty message")
    head = bytes(frames[0])
    if len(head) > MAX_HEADER:
        raise MessageError(f"header of {len(head)} bytes, allowed {MAX_HEADER}")
    if head[:3] != MAGIC:
        raise MessageError("not a robot-stack message (wrong first bytes)")
    if len(head) < 4 or head[3] != VERSION:
        spoken = head[3] if len(head) > 3 else "none"
        raise MessageError(
            f"protocol version {spoken}, this side speaks {VERSION}: install the same robot-stack "
            "version on both"
        )
    try:
        header = json.loads(head[4:])
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise MessageError("the header is not a JSON object")
    kind, body, described = header.get("kind"), header.get("body"), header.get("arrays")
    number = header.get("id")
    if (
        not isinstance(kind, str)
        or not isinstance(body, dict)
        or not isinstance(described, list)
        or not isinstance(number, int)
    ):
        raise MessageError(
            "the header lacks kind (text), id (integer), body (object) or arrays (list)"
        )
    if len(described) > MAX_ARRAYS or len(described) != len(frames) - 1:
        raise MessageError(
            f"{len(described)} arrays described, {len(frames) - 1} sent, allowed {MAX_ARRAYS}"
        )
    if sum(len(frame) for frame in frames[1:]) > max_bytes:
        raise MessageError(f"arrays of more than {max_bytes} bytes in all")
    arrays = {}
    for entry, frame in zip(described, frames[1:], strict=True):
        name, array = _decode_array(entry, frame)
        arrays[name] = array
    return Message(kind, body, arrays, number)


def _decode_array(entry: Any, frame: bytes | memoryview) -> tuple[str, NDArray[Any]]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise MessageError("an array without a name")
    name = str(entry["name"])
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in DTYPES:
        raise MessageError(
            f"array {name!r} has dtype {code!r}; allowed: {', '.join(sorted(DTYPES))}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise MessageError(f"array {name!r} has no valid shape")
    dtype = np.dtype(code)
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(frame):
        raise MessageError(
            f"array {name!r} of shape {tuple(shape)} needs {expected} bytes, {len(frame)} were sent"
        )
    array = np.frombuffer(frame, dtype).reshape(shape)
    array.flags.writeable = False
    return name, array
