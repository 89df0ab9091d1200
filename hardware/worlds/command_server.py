"""The world's own control socket: JSON in and out over ZeroMQ; and the faults it can order.

A request is one JSON object with ``op`` and that operation's arguments; the answer has ``ok``, and
``error`` (a name) with ``message`` when it is false. Nothing here is on a robot's path: it moves
the hands, the cube and the faults of a virtual station.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from hardware.dynamixel.virtual import VirtualBus
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError, ControlPlaneError, RobotStackError

__all__ = ["FAULTS", "WorldServer", "apply_fault"]

MAX_REQUEST = 1 << 16
MAX_PER_STEP = 4  # requests served between two physics steps


class WorldServer:
    """Serves ``operations`` (name to function of the request's arguments) without ever waiting."""

    def __init__(
        self,
        path: Path,
        operations: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]],
    ) -> None:
        self._path = path
        self._operations = operations
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            raise ControlPlaneError(
                f"cannot listen at {path}: {error.strerror}; the runtime directory must be "
                "writable and its path short (107 characters with the socket's name)"
            ) from error
        path.chmod(0o600)

    def poll(self) -> None:
        """Answer what has arrived, a few requests at most."""
        for _ in range(MAX_PER_STEP):
            # Asking first costs a tenth of the exception that an empty socket raises.
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            answer = json.dumps(self._answer(frames[-1])).encode()
            # DEALER and REQ clients both get back the envelope that they sent.
            self._socket.send_multipart([*frames[:-1], answer], zmq.NOBLOCK)

    def _answer(self, body: bytes) -> dict[str, Any]:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            return _refusal("BadMessage", f"not a JSON object: {error}")
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            return _refusal("BadMessage", 'a request is a JSON object with "op", a text')
        name = request.pop("op")
        operation = self._operations.get(name)
        if operation is None:
            known = ", ".join(sorted(self._operations))
            return _refusal("UnknownOp", f"no operation {name!r} (known: {known})")
        try:
            return {"ok": True, **operation(request)}
        except ConfigError as error:
            return _refusal("BadArgument", str(error))
        except RobotStackError as error:
            return _refusal(type(error).__name__.removesuffix("Error"), str(error))

    def close(self) -> None:
        """Close and remove the socket."""
        self._socket.close()
        self._context.term()
        self._path.unlink(missing_ok=True)


def _refusal(error: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": error, "message": message}


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Rate:
    rate: float = within(0.0, 1.0)


@dataclass(frozen=True)
class _Delay:
    ms: float = within(0.0, 1000.0, "ms")


@dataclass(frozen=True)
class _Noise:
    count: int = within(0, 256, "bytes")


@dataclass(frozen=True)
class _Servo:
    servo_id: int = within(0, 252)


@dataclass(frozen=True)
class _Missing:
    servo_id: int = within(0, 252)
    gone: bool = True


@dataclass(frozen=True)
class _Pull:
    servo_id: int = within(0, 252)
    current_ma: float = within(-6000.0, 6000.0, "mA", default=0.0)


@dataclass(frozen=True)
class _FaultKind:
    arguments: type
    apply: Callable[[VirtualBus, Any], None]


FAULTS: Mapping[str, _FaultKind] = {
    "drop": _FaultKind(_Rate, lambda bus, a: bus.drop(a.rate)),
    "corrupt": _FaultKind(_Rate, lambda bus, a: bus.corrupt(a.rate)),
    "delay": _FaultKind(_Delay, lambda bus, a: bus.delay(a.ms)),
    "noise": _FaultKind(_Noise, lambda bus, a: bus.noise(a.count)),
    "calm": _FaultKind(_Nothing, lambda bus, _: bus.calm()),
    "missing": _FaultKind(_Missing, lambda bus, a: bus.missing(a.servo_id, a.gone)),
    "overload": _FaultKind(_Servo, lambda bus, a: bus.overload(a.servo_id)),
    "reboot": _FaultKind(_Servo, lambda bus, a: bus.reboot(a.servo_id)),
    "pull": _FaultKind(_Pull, lambda bus, a: bus.servo(a.servo_id).pull(a.current_ma)),
    "unplug": _FaultKind(_Nothing, lambda bus, _: bus.unplug()),
    "plug": _FaultKind(_Nothing, lambda bus, _: bus.plug()),
}


def apply_fault(bus: VirtualBus, kind: str, arguments: Mapping[str, Any]) -> None:
    """Do one of ``FAULTS`` to a bus; ConfigError for an unknown kind or a bad argument."""
    fault = FAULTS.get(kind)
    if fault is None:
        raise ConfigError(f"no fault is called {kind!r} (known: {', '.join(FAULTS)})")
    fault.apply(bus, parse(fault.arguments, arguments, kind))
