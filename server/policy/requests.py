"""What requests may hold: each value checked, each fault named."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from typing import Any

from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError
from robot_stack.messages import Message

from .worker import Observation

__all__ = ["deadline_s", "integer", "mapping", "observation", "text"]

MAX_COUNT = 1_000_000
MAX_DEADLINE_MS = 3_600_000
MAX_TIME = 2**63 - 1


def _fault(what: str, code: str = "bad_request") -> PolicyError:
    return PolicyError(what, code)


def text(body: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = body.get(key, default)
    if not isinstance(value, str):
        raise _fault(f"{key!r} must be text, not {value!r}")
    return value


def mapping(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise _fault(f"{key!r} must be an object, not {value!r}")
    return value


def integer(
    body: Mapping[str, Any], key: str, lower: int, upper: int, default: int | None = None
) -> int:
    value = body.get(key, default)
    if type(value) is not int or not lower <= value <= upper:
        raise _fault(f"{key!r} must be an integer from {lower} to {upper}, not {value!r}")
    return value


def deadline_s(body: Mapping[str, Any]) -> float | None:
    """How long after reception the server may still begin; None: however long it takes."""
    value = body.get("deadline_ms")
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value <= MAX_DEADLINE_MS
    ):
        raise _fault(f"'deadline_ms' must be from 0 to {MAX_DEADLINE_MS}, or null, not {value!r}")
    return value / 1e3


def observation(
    message: Message, session: str, contract: PolicyContract
) -> tuple[Observation, int]:
    """The observation of an ``infer`` request and its newest capture time, in the shapes and units
    of the contract; PolicyError ``bad_observation`` says what differs."""
    body, arrays = message.body, message.arrays
    times = body.get("t_ns")
    if (
        not isinstance(times, list)
        or len(times) != contract.observations
        or not all(type(t) is int and 0 <= t <= MAX_TIME for t in times)
        or any(b < a for a, b in itertools.pairwise(times))
    ):
        raise _fault(
            f"'t_ns' must be {contract.observations} capture times in ns, oldest first, not "
            f"{times!r}",
            "bad_observation",
        )
    if body.get("dt_ns") != contract.control_dt_ns:
        raise _fault(
            f"the policy's rows are {contract.control_dt_ns} ns apart, 'dt_ns' is "
            f"{body.get('dt_ns')!r}",
            "bad_observation",
        )
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "state": ("<f4", (contract.observations, len(contract.state)))
    }
    for camera in contract.cameras:
        size = (camera.height, camera.width, 3)
        wanted[f"image.{camera.name}"] = ("|u1", (contract.observations, *size))
    if wanted.keys() != arrays.keys():
        raise _fault(
            f"the policy sees {', '.join(wanted)}; sent were {', '.join(arrays) or 'no arrays'}",
            "bad_observation",
        )
    for name, (dtype, shape) in wanted.items():
        array = arrays[name]
        if array.dtype.str != dtype or array.shape != shape:
            raise _fault(
                f"{name} must be {dtype} {shape}, not {array.dtype.str} {array.shape}",
                "bad_observation",
            )
        with contextlib.suppress(ValueError):  # memory that a client shares stays read-only
            array.flags.writeable = True  # the server's own bytes; torch warns of others, once
    state = arrays["state"].copy()  # libzmq may have put it at any address
    if not all(map(math.isfinite, state.ravel().tolist())):
        raise _fault("state holds NaN or infinity: a sensor is missing", "bad_observation")
    images = {camera.name: arrays[f"image.{camera.name}"] for camera in contract.cameras}
    found = Observation(
        session,
        state,
        images,
        integer(body, "previous_chunk", -1, MAX_TIME, -1),
        integer(body, "consumed", 0, MAX_COUNT, 0),
        integer(body, "delay", 0, MAX_COUNT, 0),
    )
    return found, times[-1]
