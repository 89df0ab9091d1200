"""PolicyClient: action chunks from a policy server. Needs numpy and pyzmq, no torch.

with PolicyClient("ipc:///dev/shm/robot-stack-1000/policy/policy.ipc", decoder="bid") as policy:
    reply = policy.infer(PolicyObservation(t_ns, state, images))
    lease.send_chunk(reply.actions, reply.observation_t_ns, policy.contract.control_dt_ns)
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import stat
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from robot_stack.clock import ClockOffset, clock_id
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError
from robot_stack.messages import MAX_BYTES, Message, decode, encode
from robot_stack.policy_lane import Lane
from robot_stack.shared_memory import runtime_dir

__all__ = [
    "ClientKeys",
    "PolicyClient",
    "PolicyObservation",
    "PolicyReply",
    "Timing",
    "policy_endpoint",
]

SILENT = ("superseded", "stale_epoch")  # the caller asked for something newer: nothing is wrong
HIGH_WATER = 8  # requests on their way; more would only be older ones
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000
RECONNECT_MS, RECONNECT_MAX_MS = 20, 500
READY_POLL_S = 0.05
CLOSE_S = 0.3


def policy_endpoint(name: str = "policy") -> str:
    """Where ``robot-stack policy serve --name NAME`` listens on this computer: a socket file that
    only this user can reach."""
    return f"ipc://{runtime_dir('policy')}/{name}.ipc"


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The CURVE keys of one client: its own pair and the server's public key, Z85 text."""

    public: str
    secret: str = field(repr=False)
    server: str

    @classmethod
    def read(cls, path: str | Path) -> ClientKeys:
        """The file that ``robot-stack policy keygen`` wrote. PolicyError when it is not one, or
        when others may read it."""
        path = Path(path)
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise PolicyError(f"others may read {path}: chmod 600 {path}", "keys")
            values = json.loads(path.read_text())
            return cls(str(values["public"]), str(values["secret"]), str(values["server"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyError(
                f"{path} is not a client key file ({error!r}); make one on the server with "
                "`robot-stack policy keygen --to DIR --client NAME`",
                "keys",
            ) from error


@dataclass(frozen=True, slots=True)
class PolicyObservation:
    """What a policy sees: the newest To moments, oldest first.

    ``t_ns`` (To,) int64 capture times, ``state`` (To, S) in the units of the contract, ``images``
    uint8 RGB (To, H, W, 3) by camera. The arrays go out without being copied: don't write into
    them before the reply has come.
    """

    t_ns: NDArray[np.int64]
    state: NDArray[np.float32]
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request passed its stages, monotonic ns by the client's clock.

    Received by the server, started (out of the queue, inference begins), done, replied.
    """

    sent: int
    received: int
    started: int
    done: int
    replied: int
    arrived: int


@dataclass(frozen=True, slots=True)
class PolicyReply:
    """One chunk: ``actions`` (H, D) float64 in the contract's units, row i for the moment
    ``observation_t_ns + i * control_dt_ns``. ``generation`` grows when the server reloads the
    policy. ``offset_ns`` is the server's clock minus this one's."""

    id: int
    chunk_id: int
    actions: NDArray[np.float64]
    observation_t_ns: int
    generation: int
    timing: Timing
    offset_ns: int


class PolicyClient:
    """One session with one policy of a server; for one thread. Making it does not connect.

    ``endpoint`` is ``ipc://PATH``, ``tcp://HOST:PORT`` or the name of a server on this computer.
    ``offered`` is the contract as the robot sees it: the server refuses one that differs (code
    ``contract_mismatch``). Nothing blocks longer than ``timeout_s``: every failure is a PolicyError
    with a ``code``, among them ``unreachable``, ``timeout`` and those of the server
    (docs/policy-server.md). When the server has been started again, requests fail with
    ``unknown_session`` until ``open`` is called again.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        policy: str = "",
        decoder: str = "receding_horizon",
        options: Mapping[str, Any] | None = None,
        offered: PolicyContract | None = None,
        keys: ClientKeys | str | Path | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.endpoint = endpoint if "://" in endpoint else policy_endpoint(endpoint)
        self.policy = policy
        self.decoder = decoder
        self.options = dict(options or {})
        self.offered = offered
        self.keys = ClientKeys.read(keys) if isinstance(keys, (str, Path)) else keys
        self.timeout_s = timeout_s
        self.session = ""
        self.epoch = 0
        self.generation = 0
        self.decoders: tuple[str, ...] = ()
        self._contract: PolicyContract | None = None
        self._clock = ClockOffset()
        # Sessions belong to this name; who does not know it cannot take them over.
        self._identity = b"c" + secrets.token_bytes(15)
        self._socket: zmq.Socket[bytes] | None = None
        self._lane: Lane | None = None
        self._by_zmq: set[int] = set()  # requests for chunks that did not go by the lane
        self._next_id = 1
        self._pending: dict[int, int] = {}  # request number -> when it was sent
        self._early: deque[tuple[Message, int]] = deque()  # chunks that came during another call

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def contract(self) -> PolicyContract:
        """The policy's contract, as the server sent it at ``hello`` or ``open``."""
        if self._contract is None:
            self.hello()
        assert self._contract is not None
        return self._contract

    @property
    def offset_ns(self) -> int | None:
        """Server's monotonic clock minus this one's; None before the first reply."""
        return self._clock.value

    # -- the session -------------------------------------------------------------------------

    def hello(self) -> PolicyContract:
        """Ask what the server hosts, without opening a session."""
        body = self.ask("hello", {"policy": self.policy})
        self.generation = int(body["generation"])
        self.decoders = tuple(body["decoders"])
        self._contract = PolicyContract.from_json(body["contract"], f"contract of {self.endpoint}")
        return self._contract

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """The server's health once it has loaded and warmed up its policies; PolicyError with code
        ``not_ready`` or ``unreachable`` when ``timeout_s`` has passed."""
        deadline = time.monotonic() + timeout_s
        while True:
            health = self.ask("health", timeout_s=max(deadline - time.monotonic(), 0.0))
            if health["ready"]:
                return health
            if time.monotonic() + READY_POLL_S > deadline:
                text = f"{self.endpoint} was not ready within {timeout_s:g} s: {health['detail']}"
                raise PolicyError(text, "not_ready")
            time.sleep(READY_POLL_S)

    def open(self) -> PolicyContract:
        """Begin a session, with fresh decoder state. One that was open is given up."""
        if self.session:
            with contextlib.suppress(PolicyError):
                self._send("close", {"session": self.session}, {}, 0.0)
        self._forget()
        contract = self.hello()
        body: dict[str, Any] = {
            "policy": self.policy,
            "decoder": {"name": self.decoder, "options": self.options},
        }
        if self.offered is not None:
            body["contract"] = self.offered.to_json()
        self._opened(self.ask("open", body))
        return contract

    def reset(self) -> None:
        """A new episode: the decoder forgets, and chunks in flight will never arrive."""
        self._require_session()
        self._pending.clear()
        self._early.clear()
        self._opened(self.ask("reset", {"session": self.session}))

    def close(self) -> None:
        """End the session and the connection. A server that does not answer lets it expire."""
        if self._socket is None:
            return
        if self.session:
            with contextlib.suppress(PolicyError):
                self.ask("close", {"session": self.session}, timeout_s=CLOSE_S)
        self._forget()
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        self._socket.close(linger=0)
        self._socket = None

    def _opened(self, body: dict[str, Any]) -> None:
        self.session = str(body["session"])
        self.epoch = int(body["epoch"])
        self.generation = int(body["generation"])
        if self._lane is None and "lane" in body:
            contract, moments = self.contract, self.contract.observations
            sizes = [4 * moments * len(contract.state)]
            sizes += [3 * moments * c.height * c.width for c in contract.cameras]
            with contextlib.suppress(OSError):  # not the same computer after all: ZeroMQ it is
                self._lane = Lane(str(body["lane"]), self._identity, sizes)

    def _forget(self) -> None:
        self.session = ""
        self._pending.clear()
        self._early.clear()

    def _require_session(self) -> None:
        if not self.session:
            raise PolicyError("no session is open: call open() first", "unknown_session")

    # -- chunks ------------------------------------------------------------------------------

    def request(
        self,
        observation: PolicyObservation,
        *,
        previous_chunk: int = -1,
        consumed: int = 0,
        delay: int = 0,
        deadline_s: float | None = None,
    ) -> int:
        """Ask for a chunk without waiting; returns the request's number.

        ``previous_chunk`` is the chunk that is being executed (-1: none), ``consumed`` how many of
        its rows were consumed when the observation was captured, ``delay`` how many more will be
        until the new chunk arrives (a forecast). After ``deadline_s`` the server need not begin
        any more (code ``expired``). A request that still waits in the server is superseded by a
        newer one of the same session.
        """
        self._require_session()
        contract = self.contract
        arrays: dict[str, NDArray[Any]] = {"state": np.asarray(observation.state, np.float32)}
        for camera, image in observation.images.items():
            arrays[f"image.{camera}"] = np.asarray(image)
        body = {
            "session": self.session,
            "epoch": self.epoch,
            "t_ns": [int(t) for t in observation.t_ns],
            "dt_ns": contract.control_dt_ns,
            "deadline_ms": None if deadline_s is None else deadline_s * 1e3,
            "previous_chunk": previous_chunk,
            "consumed": consumed,
            "delay": delay,
        }
        number, sent = self._send("infer", body, arrays, 0.0)
        self._pending[number] = sent
        return number

    def poll(self, timeout_s: float = 0.0) -> PolicyReply | None:
        """The next chunk that has arrived, waiting for it at most ``timeout_s``.

        PolicyError when the server refused a request, with the server's code, or when one has been
        unanswered for the client's ``timeout_s``. Replies to what was superseded or was asked
        before a reset are dropped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            arrived = (
                self._early.popleft()
                if self._early
                else self._receive(min(left, self._patience_s()))
            )
            if arrived is None:
                self._give_up_late()
                if left <= 0:
                    return None
                continue
            reply = self._chunk(*arrived)
            if reply is not None:
                return reply

    def infer(
        self,
        observation: PolicyObservation,
        *,
        previous_chunk: int = -1,
        consumed: int = 0,
        delay: int = 0,
        deadline_s: float | None = None,
    ) -> PolicyReply:
        """``request`` and wait for its chunk; PolicyError ``timeout`` after ``timeout_s``."""
        number = self.request(
            observation,
            previous_chunk=previous_chunk,
            consumed=consumed,
            delay=delay,
            deadline_s=deadline_s,
        )
        while True:
            reply = self.poll(self.timeout_s)
            if reply is None:
                raise self._timeout("infer", self.timeout_s)
            if reply.id == number:
                return reply

    def _chunk(self, message: Message, arrived: int) -> PolicyReply | None:
        sent = self._pending.pop(message.id, None)
        if sent is None:
            return None
        if message.kind == "error":
            if message.body.get("code") in SILENT:
                return None
            raise self._refusal(message)
        body = message.body
        offset = self._clock.value or 0
        timing = body["timing"]
        return PolicyReply(
            id=message.id,
            chunk_id=int(body["chunk_id"]),
            actions=message.arrays["actions"],
            observation_t_ns=int(body["observation_t_ns"]),
            generation=int(body["generation"]),
            timing=Timing(
                sent=sent,
                received=int(timing["received_ns"]) - offset,
                started=int(timing["started_ns"]) - offset,
                done=int(timing["done_ns"]) - offset,
                replied=int(timing["replied_ns"]) - offset,
                arrived=arrived,
            ),
            offset_ns=offset,
        )

    def _patience_s(self) -> float:
        """How long until the oldest request has been unanswered for too long."""
        if not self._pending:
            return self.timeout_s
        return self.timeout_s - (time.monotonic_ns() - min(self._pending.values())) / 1e9

    def _give_up_late(self) -> None:
        now = time.monotonic_ns()
        late = [n for n, sent in self._pending.items() if now - sent > self.timeout_s * 1e9]
        if late:
            for number in late:
                del self._pending[number]
            raise self._timeout("infer", self.timeout_s)

    # -- the wire ----------------------------------------------------------------------------

    def ask(
        self, kind: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Ask the server and wait for its answer's body; PolicyError when it refuses or is silent
        for ``timeout_s`` (default: the client's)."""
        timeout = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout
        number, _ = self._send(kind, dict(body or {}), {}, timeout)
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            arrived = self._receive(left)
            if arrived is None:
                if left <= 0:
                    raise self._timeout(kind, timeout)
            elif arrived[0].id == number:
                if arrived[0].kind == "error":
                    raise self._refusal(arrived[0])
                return arrived[0].body
            elif arrived[0].id in self._pending:
                self._early.append(arrived)

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
            socket.setsockopt(zmq.ROUTING_ID, self._identity)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
            socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
            socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
            if self.keys is not None:
                socket.curve_publickey = self.keys.public.encode()
                socket.curve_secretkey = self.keys.secret.encode()
                socket.curve_serverkey = self.keys.server.encode()
            try:
                socket.connect(self.endpoint)
            except zmq.ZMQError as error:
                socket.close(linger=0)
                raise PolicyError(
                    f"{self.endpoint!r} is no endpoint ({error}); give ipc://PATH, tcp://HOST:PORT "
                    "or the name of a server on this computer",
                    "unreachable",
                ) from error
            self._socket = socket
        return self._socket

    def _send(
        self, kind: str, body: dict[str, Any], arrays: dict[str, NDArray[Any]], wait_s: float
    ) -> tuple[int, int]:
        socket = self._connected()
        number = self._next_id
        self._next_id += 1
        deadline = time.monotonic() + wait_s
        while True:
            sent = time.monotonic_ns()
            body["sent_ns"] = sent
            if kind == "infer" and self._by_lane(number, body, arrays):
                return number, sent
            frames = encode(Message(kind, body, arrays, number))
            try:
                socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
                return number, sent
            except zmq.Again:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._unreachable() from None
                zmq.zmq_poll([(socket, zmq.POLLOUT)], _milliseconds(left))

    def _by_lane(self, number: int, body: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bool:
        """Whether a request went by the lane. It does not overtake one that went by ZeroMQ."""
        self._by_zmq &= self._pending.keys()
        if self._lane is not None and not self._by_zmq:
            if self._lane.send(number, body, arrays, self._pending):
                return True
            self._forget_closed_lane()
        self._by_zmq.add(number)
        return False

    def _forget_closed_lane(self) -> None:
        if self._lane is not None and self._lane.closed:
            self._lane = None

    def _receive(self, wait_s: float) -> tuple[Message, int] | None:
        """The next message, waiting for it at most ``wait_s``, and when it came."""
        socket = self._connected()
        message = None
        if self._lane is not None:
            message = self._lane.look_for(wait_s)
            self._forget_closed_lane()
        arrived = time.monotonic_ns()
        if message is None:
            waited: list[tuple[Any, int]] = [(socket, zmq.POLLIN)]
            if self._lane is not None:
                waited.append((self._lane.fileno(), zmq.POLLIN))
            ready = zmq.zmq_poll(waited, _milliseconds(wait_s))
            arrived = time.monotonic_ns()
            if self._lane is not None and any(one is not socket for one, _ in ready):
                message = self._lane.receive()
                self._forget_closed_lane()
            elif ready:
                message = decode(socket.recv_multipart(zmq.NOBLOCK))
        if message is None:
            return None
        timing = message.body.get("timing")
        if isinstance(timing, dict) and "sent_ns" in message.body:
            if message.kind == "contract":
                self._clock.clear()
                if message.body.get("clock") and message.body["clock"] == clock_id():
                    self._clock.same_clock()
            self._clock.add(
                int(message.body["sent_ns"]),
                int(timing["received_ns"]),
                int(timing["replied_ns"]),
                arrived,
            )
        return message, arrived

    def _unreachable(self) -> PolicyError:
        keys = " with these keys" if self.keys is not None else " without keys"
        return PolicyError(
            f"nobody takes requests at {self.endpoint}{keys}: start a server with "
            "`robot-stack policy serve`, or ask the one there for a key",
            "unreachable",
        )

    def _refusal(self, message: Message) -> PolicyError:
        code = str(message.body.get("code"))
        if code == "unknown_session":
            self._forget()
        return PolicyError(str(message.body.get("text")), code)

    def _timeout(self, kind: str, timeout: float) -> PolicyError:
        return PolicyError(
            f"{self.endpoint} did not answer {kind!r} within {timeout:g} s; see "
            f"`robot-stack policy health {self.endpoint}`",
            "timeout",
        )


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1e3))
