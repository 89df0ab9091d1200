"""StationClient: all that an outside program needs to watch a station and to move it.

with StationClient("aloha_virtual") as station:
    with station.lease("followers", holder="my_script") as lease:
        station.arm("followers")
        lease.send(target)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import numpy as np
import zmq
from numpy.typing import ArrayLike, NDArray

from robot_stack.errors import CommandRefusedError, ControlPlaneError, LeaseError, SharedMemoryError
from robot_stack.messages import Message, decode, encode
from robot_stack.records import CHUNK_ROWS, command_record, mailbox_path, ring_path
from robot_stack.shared_memory import Flag, Ring, RingWriter, runtime_dir, runtime_root
from robot_stack.types import CommandMode, Source, StopCategory

__all__ = ["Lease", "StationClient", "control_endpoint", "stations", "stop_all", "stop_asked"]

KEPT_REPLIES = 256
KEEP_MS = 5
POSE_S = 90.0  # the longest way of all groups to a named pose
END_S = 3.0  # for a move to end that is given up; then the stop flags are raised


def control_endpoint(station: str) -> str:
    """Where a station's supervisor listens: a socket file only this user can reach."""
    return f"ipc://{runtime_dir(station)}/control.ipc"


def stations() -> list[str]:
    """The stations on this computer that have a stop flag to raise, running or not."""
    return sorted({path.parent.name for path in runtime_root().glob("*/stop.*")})


def stop_all(
    station: str,
    reason: str,
    category: StopCategory = StopCategory.HOLD,
    *,
    group: str | None = None,
) -> list[str]:
    """Raise the stop flag of every group of a station, or of ``group`` alone, with or without a
    supervisor.

    Returns the groups that were told. Needs no lease and no answer from anybody. A flag that can't
    be raised (SharedMemoryError, OSError) keeps none of the others down.
    """
    stopped = []
    failed: Exception | None = None
    for path in sorted((runtime_root() / station).glob("stop.*")):
        name = path.name.removeprefix("stop.")
        if group is not None and name != group:
            continue
        try:
            flag = Flag(path)
            flag.set(int(category) + 1, reason, asked=True)
            flag.close()
            stopped.append(name)
        except (SharedMemoryError, OSError) as error:  # the others first
            failed = error
    if failed is not None:
        raise failed
    return stopped


def stop_asked(station: str, group: str) -> bool:
    """Whether somebody has stopped this group, be it beside a fault, since it was last reset."""
    with contextlib.closing(Flag(ring_path(station, "stop", group))) as flag:
        return flag.value != 0 and flag.asked


class Lease:
    """The right to move one group. ``send`` and ``send_chunk`` write its mailbox.

    Renew it by calling ``renew`` at least every ``ttl_s / 3`` (``send`` does so by itself). It
    ends with ``release``, with the context manager, or when a holder of higher priority takes over;
    ``lost`` then says who did.
    """

    def __init__(
        self, client: StationClient, group: str, grant: dict[str, Any], source: Source
    ) -> None:
        self.client = client
        self.group = group
        self.token: int = grant["token"]
        self.dof: int = grant["dof"]
        self.ttl_s: float = grant["ttl_s"]
        self.source = source
        self.lost: str | None = None
        self._seq = 0
        self._renewed = time.monotonic()
        self._pending: int | None = None
        self._writer = RingWriter(
            mailbox_path(client.station, group, self.token), command_record(self.dof), 16
        )

    def send(
        self,
        target: ArrayLike,
        t_ns: int | None = None,
        *,
        mode: CommandMode = CommandMode.JOINT_POSITION,
    ) -> int:
        """Publish one immediate target, shape (dof,); returns its number.

        In ``CommandMode.EE_POSE`` the first seven of a robot's values are the pose of its end
        effector, x y z in m and a quaternion w x y z, in its base frame. A robot that takes joints
        only refuses that (INVALID in its tick) and holds.
        """
        row = np.asarray(target, dtype=np.float64)
        if row.shape != (self.dof,):
            raise CommandRefusedError(
                f"a target for group {self.group!r} has {self.dof} values, not shape {row.shape}"
            )
        with self._record(row[None], mode) as record:
            if t_ns is not None:
                record["t_ns"] = t_ns
        return self._seq - 1

    def send_chunk(
        self,
        actions: ArrayLike,
        start_t_ns: int,
        dt_ns: int,
        *,
        observation_t_ns: int = -1,
        chunk_id: int = -1,
        mode: CommandMode = CommandMode.JOINT_POSITION,
    ) -> int:
        """Publish targets ``actions`` (H, dof) for ``start_t_ns + i * dt_ns``, H up to 128, each
        as ``send`` takes it."""
        rows = np.asarray(actions, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dof or not 2 <= len(rows) <= CHUNK_ROWS:
            raise CommandRefusedError(
                f"a chunk for group {self.group!r} has shape (2..{CHUNK_ROWS}, {self.dof}), "
                f"not {rows.shape}"
            )
        if dt_ns <= 0:
            raise CommandRefusedError(f"a chunk's dt_ns is positive, not {dt_ns}")
        with self._record(rows, mode) as record:
            record["start_t_ns"] = start_t_ns
            record["dt_ns"] = dt_ns
            record["observation_t_ns"] = observation_t_ns
            record["chunk_id"] = chunk_id
        return self._seq - 1

    @contextlib.contextmanager
    def _record(self, rows: NDArray[np.float64], mode: CommandMode) -> Iterator[Any]:
        """The next mailbox record, filled as an immediate target for the caller to amend."""
        self.renew()
        if self.lost is not None:
            raise LeaseError(f"the lease of {self.group!r} is lost: {self.lost}")
        with self._writer.writing() as record:
            record["token"] = self.token
            record["seq"] = self._seq
            record["t_ns"] = time.monotonic_ns()
            record["source"] = self.source
            record["mode"] = mode
            record["rows"] = len(rows)
            record["start_t_ns"] = 0
            record["dt_ns"] = 0
            record["observation_t_ns"] = -1
            record["chunk_id"] = -1
            record["target"][: len(rows)] = rows
            yield record
        self._seq += 1

    def renew(self) -> None:
        """Ask for renewal when a third of the time-to-live has passed; never blocks.

        The answer is taken up at a later call. LeaseError is not raised here: ``lost`` is set.
        """
        reply = None if self._pending is None else self.client.poll_reply(self._pending)
        if reply is not None:
            self._pending = None
            if reply.kind == "error":
                self.lost = str(reply.body.get("message"))
        if time.monotonic() - self._renewed > self.ttl_s / 3 and self.lost is None:
            self._renewed = time.monotonic()
            body = {"group": self.group, "token": self.token}
            with contextlib.suppress(ControlPlaneError):  # no supervisor: it may come back in time
                self._pending = self.client.post("lease.renew", body)

    def release(self) -> None:
        """Give the lease back; the group decelerates and holds."""
        self._writer.close(unlink=True)
        if self.lost is None:
            self.lost = "released"
            with contextlib.suppress(ControlPlaneError):  # a dead supervisor lets it expire
                body = {"group": self.group, "token": self.token}
                self.client.request("lease.release", body, timeout_s=1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class StationClient:
    """A connection to one station on this computer. Opening it neither connects nor moves."""

    def __init__(self, station: str, *, timeout_s: float = 5.0) -> None:
        self.station = station
        self.timeout_s = timeout_s
        self._socket: zmq.Socket[bytes] | None = None
        self._next_id = 1
        self._replies: dict[int, Message] = {}
        self._rings: dict[str, Ring] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def post(self, kind: str, body: dict[str, Any] | None = None) -> int:
        """Send a request without waiting; ``poll_reply`` gives its reply."""
        if self._socket is None:
            self._socket = zmq.Context.instance().socket(zmq.DEALER)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.SNDHWM, 64)
            self._socket.connect(control_endpoint(self.station))
        number = self._next_id
        self._next_id += 1
        try:
            self._socket.send_multipart(encode(Message(kind, body or {}, id=number)), zmq.NOBLOCK)
        except zmq.Again:
            raise self._silent(kind, 0.0) from None
        return number

    def poll_reply(self, number: int) -> Message | None:
        """The reply to a posted request if it has arrived; never blocks.

        Replies that nobody asks for are kept for a while and then forgotten.
        """
        while self._socket is not None and self._socket.poll(0):
            reply = decode(self._socket.recv_multipart())
            self._replies[reply.id] = reply
            if len(self._replies) > KEPT_REPLIES:
                del self._replies[min(self._replies)]
        return self._replies.pop(number, None)

    def request(
        self,
        kind: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        keep: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Ask the supervisor and wait for its answer's body; ControlPlaneError when it refuses
        or does not answer within ``timeout_s``. ``keep`` is called all the while, to renew leases.
        """
        timeout = self.timeout_s if timeout_s is None else timeout_s
        return _answer(kind, self._wait(self.post(kind, body), kind, timeout, keep))

    def _wait(
        self, number: int, kind: str, timeout: float, keep: Callable[[], None] | None = None
    ) -> Message:
        """The reply to a posted request; ControlPlaneError when there is none within ``timeout``
        (s)."""
        assert self._socket is not None
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            reply = self.poll_reply(number)
            if reply is not None:
                return reply
            if keep is not None:
                keep()
            self._socket.poll(int(left * 1000) + 1 if keep is None else KEEP_MS)
        raise self._silent(kind, timeout)

    def _silent(self, kind: str, timeout: float) -> ControlPlaneError:
        return ControlPlaneError(
            f"the supervisor of station {self.station!r} did not answer {kind!r} within "
            f"{timeout:g} s; start it with `robot-stack serve <station file>`"
        )

    def describe(self) -> dict[str, Any]:
        """The station as its supervisor runs it: groups, robots, cameras, specs, rates."""
        return self.request("describe")

    def status(self) -> dict[str, Any]:
        """Lifecycle, fault, rate and process of every robot and camera, and the leases."""
        return self.request("status")

    def lease(
        self, group: str, holder: str, *, source: Source = Source.HUMAN, ttl_s: float = 5.0
    ) -> Lease:
        """Ask for the right to move ``group``. Policies yield to humans, nobody to a policy."""
        body = {"group": group, "holder": holder, "source": int(source), "ttl_s": ttl_s}
        return Lease(self, group, self.request("lease.acquire", body), source)

    def arm(self, group: str, *, torque: bool = True) -> None:
        """Let the group follow commands. All joints get torque first; with ``torque`` false those
        that hang free stay free."""
        self.request("arm", {"group": group, "torque": torque})

    def disarm(self, group: str) -> None:
        """Let the group ignore commands and hold, under torque."""
        self.request("disarm", {"group": group})

    def to_pose(
        self,
        pose: Literal["home", "sleep"],
        group: str | None = None,
        *,
        timeout_s: float = POSE_S,
        keep: Callable[[], None] | None = None,
    ) -> None:
        """Arm a group (None: one after the other) and move it slowly to a named pose.

        The supervisor makes the move, but it ends with this call, whatever ends that: Ctrl-C,
        ``timeout_s``, an exception of ``keep``, which is called all the while. The robots then
        brake and hold, disarmed; should the supervisor not manage that, they are stopped.
        """
        body: dict[str, Any] = {} if group is None else {"group": group}
        number = self._next_id
        try:
            self.post(pose, body)
            reply = self._wait(number, pose, timeout_s, keep)
        except BaseException:
            self.give_up(number, pose, group)
            raise
        _answer(pose, reply)

    def give_up(self, number: int, pose: Literal["home", "sleep"], group: str | None) -> None:
        """End the move to a pose that ``post`` asked for as ``number``: disarm until that request
        has ended (what it arms after one disarming is disarmed by the next), stop if it does not.

        Nothing is done when it has ended already.
        """
        body: dict[str, Any] = {} if group is None else {"group": group}
        ended = False
        try:
            ended = self.poll_reply(number) is not None
            deadline = time.monotonic() + END_S
            while not ended and (left := deadline - time.monotonic()) > 0:
                self._wait(self.post("disarm", body), "disarm", left)
                ended = self.poll_reply(number) is not None
        except ControlPlaneError:
            pass  # said below, by the stop's reason
        finally:  # also when somebody presses Ctrl-C again
            if not ended:
                stop_all(self.station, f"{pose} was given up and did not end", group=group)

    def torque(self, robot: str, joints: list[bool], on: bool) -> None:
        """Switch the torque of some joints of a robot (leaders; followers only at rest)."""
        self.request("torque", {"robot": robot, "joints": joints, "on": on})

    def stop(self, reason: str = "stop requested") -> None:
        """Stop every group through shared memory; ControlPlaneError when there is none to stop
        and no supervisor answers either."""
        if not stop_all(self.station, reason):
            self.request("stop", {"reason": reason})

    def ring(self, kind: str, name: str) -> Ring:
        """The ring ``kind.name`` of this station, kept open and following restarts."""
        key = f"{kind}.{name}"
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = Ring(ring_path(self.station, kind, name))
        elif ring.closed:
            ring.reopen()
        return ring

    def tick(self, robot: str) -> Any:
        """The newest tick of a robot's arm process (``records.tick_record``)."""
        latest = self.ring("arm", robot).latest()
        if latest is None:
            raise SharedMemoryError(f"the arm process of {robot!r} has not run a tick yet")
        return latest[1]


def _answer(kind: str, reply: Message) -> dict[str, Any]:
    """The body of a reply; a refusal is an error."""
    if reply.kind == "error":
        error = LeaseError if kind.startswith("lease.") else ControlPlaneError
        raise error(str(reply.body.get("message")))
    return reply.body
