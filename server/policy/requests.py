"""What requests may hold: each value checked, each fault named."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError
from robot_stack.messages import Message

from .worker import Observation

__all__ = ["Observations", "deadline_s", "integer", "mapping", "text"]

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


class Observations:
    """Reads the observations of a policy's ``infer`` requests."""

    def __init__(self, contract: PolicyContract) -> None:
        self._moments, self._dt_ns = contract.observations, contract.control_dt_ns
        self._wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "state": (np.dtype("<f4"), (self._moments, len(contract.state)))
        }
        self._cameras = {f"image.{camera.name}": camera.name for camera in contract.cameras}
        for camera in contract.cameras:
            size = (camera.height, camera.width, 3)
            self._wanted[f"image.{camera.name}"] = (np.dtype("|u1"), (self._moments, *size))

    def read(self, message: Message, session: str) -> tuple[Observation, int]:
        """The observation and its newest capture time, in the shapes and units of the contract;
        PolicyError ``bad_observation`` says what differs."""
        body, arrays = message.body, message.arrays
        times = body.get("t_ns")
        if not isinstance(times, list) or len(times) != self._moments or not _in_order(times):
            raise _fault(
                f"'t_ns' must be {self._moments} capture times in ns, oldest first, not {times!r}",
                "bad_observation",
            )
        if body.get("dt_ns") != self._dt_ns:
            raise _fault(
                f"the policy's rows are {self._dt_ns} ns apart, 'dt_ns' is {body.get('dt_ns')!r}",
                "bad_observation",
            )
        sent = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        if sent != self._wanted:
            raise self._misfit(sent)
        for array in arrays.values():
            if not array.flags.writeable:
                with contextlib.suppress(ValueError):
                    array.flags.writeable = True  # the server's own bytes; torch warns of others
        state = arrays["state"].copy()  # libzmq may have put it at any address
        if not all(map(math.isfinite, state.ravel().tolist())):
            raise _fault("state holds NaN or infinity: a sensor is missing", "bad_observation")
        found = Observation(
            session,
            state,
            {camera: arrays[name] for name, camera in self._cameras.items()},
            integer(body, "previous_chunk", -1, MAX_TIME, -1),
            integer(body, "consumed", 0, MAX_COUNT, 0),
            integer(body, "delay", 0, MAX_COUNT, 0),
        )
        return found, times[-1]

    def _misfit(self, sent: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> PolicyError:
        if sent.keys() != self._wanted.keys():
            names = ", ".join(sent) or "no arrays"
            text = f"the policy sees {', '.join(self._wanted)}; sent were {names}"
            return _fault(text, "bad_observation")
        name = next(name for name, wanted in self._wanted.items() if sent[name] != wanted)
        (dtype, shape), (found, size) = self._wanted[name], sent[name]
        text = f"{name} must be {dtype.str} {shape}, not {found.str} {size}"
        return _fault(text, "bad_observation")


def _in_order(times: list[Any]) -> bool:
    """Whether they are capture times, oldest first."""
    before = 0
    for t in times:
        if type(t) is not int or not before <= t <= MAX_TIME:
            return False
        before = t
    return True
