"""Runs a policy on a station: observations out of shared memory, chunks into the lease's mailbox.

Asynchronous by default: the next chunk is asked for while the last one executes, early enough that
it arrives before the rows that are meant to be executed have run out. Every chunk is anchored to
the capture time of its observation; the arms' chunk buffer drops what has passed. How many rows
pass between an observation and its chunk is *counted*, from the first row that an arm process
actuated, and the forecast sent with a request is the largest of the recent counts (Black et al.
2025, alg. 1). Late chunks: the arms go on with the rest of the last one, hold, decelerate.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from collect.latency import LatencyLog
from collect.observation import ObservationReader
from robot_stack.client import Lease, StationClient
from robot_stack.config import GroupConfig, Station
from robot_stack.contract import PolicyContract
from robot_stack.errors import ControlPlaneError, LeaseError, PolicyError, SharedMemoryError
from robot_stack.policy_client import PolicyObservation, PolicyReply
from robot_stack.records import CHUNK_ROWS
from robot_stack.types import Difference, Lifecycle, Source

__all__ = ["Mode", "PolicyRunner", "PolicySource", "RolloutSummary"]

Mode = Literal["async", "sync"]

POLL_S = 0.001
RECENT = 10  # counts of which the largest is the forecast
MARGIN_ROWS = 1  # a chunk that arrives in the row where it is needed is late
GIVE_UP_S = 1.0  # at least; without an answer the policy is asked again, with a new observation
SYNC_GIVE_UP_S = 5.0  # the robot waits anyway
LEASE_S = 20.0  # longer than the calls that open a session may take
SILENCE_S = 1.0  # without a tick the rollout ends
REFUSED_S = 1.0  # with a target too far to be followed it ends, too
SYNC_LEAD_S = 0.02  # from a chunk's arrival to its first row, when the robot waits for it
PAUSE_S = 0.1  # before a server that failed is asked again
# What a policy server may answer, or not, without the rollout ending: the arms hold meanwhile.
PASSING = (
    "expired",
    "timeout",
    "overloaded",
    "draining",
    "not_ready",
    "unreachable",
    "unknown_session",
)
RETAKE_S = 0.25  # between two tries to get the lease back


class PolicySource(Protocol):
    """A session with a hosted policy: ``PolicyClient`` or ``OpenpiClient``."""

    @property
    def contract(self) -> PolicyContract: ...

    def open(self) -> PolicyContract: ...

    def reset(self) -> None: ...

    def request(
        self,
        observation: PolicyObservation,
        *,
        previous_chunk: int = -1,
        consumed: int = 0,
        delay: int = 0,
        deadline_s: float | None = None,
    ) -> int: ...

    def poll(self, timeout_s: float = 0.0) -> PolicyReply | None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class RolloutSummary:
    """What happened: chunks that were actuated, asked again for want of an answer, ticks in which
    an arm ran out of rows or of fresh ones, human takeovers, latency by stage."""

    seconds: float = 0.0
    chunks: int = 0
    unanswered: int = 0
    starved_ticks: int = 0
    takeovers: int = 0
    ended: str = ""
    latency: LatencyLog = field(default_factory=LatencyLog)


@dataclass(slots=True)
class _Chunk:
    """A chunk that was sent to the arms."""

    chunk_id: int
    start_ns: int  # time of row 0
    arrived_ns: int
    observed_ns: int
    rows: int
    first_row: int = -1  # the first that an arm actuated, -1 until then


@dataclass(frozen=True, slots=True)
class _Asked:
    observed_ns: int
    at_s: float


class PolicyRunner:
    """Drives one group of a station with one policy session; ``run`` until ``done()``.

    ``execute`` is how many rows of a chunk are executed before the next takes over (default: the
    contract's). ``event`` gets ``(kind, text)`` for the recorder: every chunk in use, takeovers.
    ``resume`` is asked after a takeover, once the robots are free again: True goes on. It gets
    ``done`` and calls it while it waits, which keeps a recording going.
    """

    def __init__(
        self,
        station: Station,
        group: GroupConfig,
        client: StationClient,
        policy: PolicySource,
        *,
        mode: Mode = "async",
        execute: int | None = None,
        say: Callable[[str], None] = print,
        event: Callable[[str, str], None] = lambda kind, text: None,
        resume: Callable[[Callable[[], bool]], bool] = lambda done: False,
    ) -> None:
        contract = policy.contract
        self.execute = contract.execute if execute is None else execute
        most = min(contract.rows, CHUNK_ROWS)
        if not 1 <= self.execute <= most:
            raise ControlPlaneError(f"execute is {self.execute} rows; allowed here: 1..{most}")
        self.station = station
        self.group = group
        self.client = client
        self.policy = policy
        self.contract = contract
        self.mode = mode
        self.say = say
        self.event = event
        self.resume = resume
        self.reader = ObservationReader(client, station, contract)
        self.summary = RolloutSummary()
        self._counts: deque[int] = deque(maxlen=RECENT)
        self._next_tick: dict[str, int] = {}
        self._generation: dict[str, int] = {}
        self._ticked_ns: dict[str, int] = {}
        self._refused_ns: dict[str, int] = {}  # since when a robot cannot follow its target
        rows_s = min(contract.rows, CHUNK_ROWS) * contract.control_dt_ns / 1e9
        self._give_up_s = SYNC_GIVE_UP_S if mode == "sync" else max(GIVE_UP_S, rows_s)
        self._forget()

    def _forget(self) -> None:
        """No chunk is on its way or in use."""
        self._chunk: _Chunk | None = None
        self._asked: _Asked | None = None
        self._consumed = 0  # rows of the chunk in use that its arms have consumed
        self._starved = False
        self._fresh = False  # whether the session remembers nothing of what came before
        self._pause_s = 0.0
        self._silence = ""  # why there is no chunk, as it was said

    def run(self, done: Callable[[], bool]) -> RolloutSummary:
        """Lease, arm, follow the policy until ``done()``; the arms then decelerate and hold.

        ControlPlaneError when an arm stops or faults, DeviceError when an observation is missing,
        PolicyError when the server refuses. LeaseError when the first lease is refused.
        """
        began = time.monotonic()
        held = False
        try:
            while not done():
                try:
                    lost = self._hold_lease(done)
                    held = True
                except LeaseError as error:
                    if not held:
                        raise
                    lost = str(error)  # somebody was quicker
                if lost is not None and not self._wait_for_hand_back(lost, done):
                    break
            self.summary.ended = self.summary.ended or "done"
        finally:
            self.summary.seconds = time.monotonic() - began
        return self.summary

    def _hold_lease(self, done: Callable[[], bool]) -> str | None:
        """Run under one lease until ``done()``, or until it is lost: then why."""
        self._forget()  # a chunk in flight dies, what was selected before is no prior
        with self.client.lease(
            self.group.name, "policy", source=Source.POLICY, ttl_s=LEASE_S
        ) as lease:
            self.client.request("arm", {"group": self.group.name}, timeout_s=40.0, keep=lease.renew)
            self._follow_ticks()
            while not done() and lease.lost is None:
                if (other := self._taken(lease.token)) is not None:
                    return other  # renewing would tell seconds later
                self._turn(lease)
                lease.renew()
                time.sleep(POLL_S)
            return lease.lost

    def _taken(self, token: int) -> str | None:
        """Who was granted the lease after ``token``, None while it is ours."""
        latest = self.client.ring("lease", self.group.name).latest()
        if latest is None or int(latest[1]["token"]) <= token:
            return None
        return f"taken over by {latest[1]['holder'].decode(errors='replace')!r}"

    def _wait_for_hand_back(self, lost: str, done: Callable[[], bool]) -> bool:
        """After the lease was lost: True to go on, when the robots are free and ``resume`` agrees.

        Also when it ran out because this process was held up: a person may have had the robots
        meanwhile.
        """
        self.summary.takeovers += 1
        self.event("takeover", lost)
        self.say(f"{lost}; the policy's chunks are dropped")
        looked = time.monotonic()
        while not done():
            if time.monotonic() - looked > RETAKE_S:
                looked = time.monotonic()
                if self._holder() is None:
                    if self.resume(done):
                        self.event("handback", "the policy goes on")
                        return True
                    self.summary.ended = "taken over"
                    return False
            time.sleep(POLL_S)
        return True

    def _holder(self) -> str | None:
        """Who holds the lease of the group."""
        holder: str | None = self.client.status()["groups"][self.group.name]["holder"]
        return holder

    # -- one turn ----------------------------------------------------------------------------

    def _turn(self, lease: Lease) -> None:
        self._read_ticks()
        now_ns = time.monotonic_ns()
        if time.monotonic() < self._pause_s:
            return
        try:
            if not self._fresh:
                self._renew_session()
            reply = self.policy.poll()
            if reply is not None:
                self._take(reply, lease, time.monotonic_ns())
            asked = self._asked
            if asked is not None and time.monotonic() - asked.at_s > self._give_up_s:
                self._unanswered(f"no answer within {self._give_up_s:g} s")
            if self._asked is None and self._due(now_ns):
                self._ask(now_ns)
        except PolicyError as error:
            if error.code not in PASSING:
                raise
            asked = self._asked
            age_s = math.inf if asked is None else time.monotonic() - asked.at_s
            if error.code == "timeout" and age_s < self._give_up_s / 2:
                return  # of a question that was given up: the present one is younger
            self._unanswered(str(error))
            self._pause_s = time.monotonic() + PAUSE_S
            if error.code == "unknown_session":  # the server was started again
                self._chunk, self._fresh = None, False

    def _renew_session(self) -> None:
        """Reset the session, or open one where the server does not know it any more."""
        try:
            self.policy.reset()
        except PolicyError as error:
            if error.code != "unknown_session":
                raise
            self.policy.open()
        self._fresh = True

    def _unanswered(self, why: str) -> None:
        """The arms go on with what they have, then hold; the policy is asked again."""
        self._asked = None
        self.summary.unanswered += 1
        if why != self._silence:  # once, not ten times a second
            self._silence = why
            self.say(f"no chunk: {why}; the policy is asked again")

    @property
    def forecast(self) -> int:
        """Rows that will pass before a chunk asked for now is in force."""
        return max(self._counts, default=0)

    def _due(self, now_ns: int) -> bool:
        chunk = self._chunk
        if chunk is None:
            return True
        dt_ns = self.contract.control_dt_ns
        if now_ns >= chunk.start_ns + chunk.rows * dt_ns:
            if chunk.first_row < 0:
                self._unanswered("it came after its last row")
                self._chunk = None
            return True
        if self.mode == "sync":
            return now_ns >= chunk.start_ns + self.execute * dt_ns
        if chunk.first_row < 0:
            return False  # not in force yet: its own delay is not known
        return self._consumed >= max(1, self.execute - self.forecast - MARGIN_ROWS)

    def _ask(self, now_ns: int) -> None:
        observation = self.reader.read(now_ns)
        observed_ns = int(observation.t_ns[-1])
        chunk, consumed = self._chunk, 0
        if chunk is not None:
            passed = (observed_ns - chunk.start_ns) / self.contract.control_dt_ns
            consumed = chunk.rows if self._starved else int(np.clip(round(passed), 0, chunk.rows))
        self.policy.request(
            observation,
            previous_chunk=-1 if chunk is None else chunk.chunk_id,
            consumed=consumed,
            delay=0 if self.mode == "sync" else self.forecast,
            deadline_s=self._give_up_s,
        )
        self._asked = _Asked(observed_ns, time.monotonic())

    def _take(self, reply: PolicyReply, lease: Lease, now_ns: int) -> None:
        """Send a chunk to the arms, anchored to the capture time of its observation."""
        if self._asked is None or reply.observation_t_ns != self._asked.observed_ns:
            return  # answers a question that was given up
        self._asked = None
        rows: NDArray[np.float64] = reply.actions[:CHUNK_ROWS]
        start_ns = reply.observation_t_ns
        if self.mode == "sync":
            rows, start_ns = rows[: self.execute], now_ns + round(SYNC_LEAD_S * 1e9)
        if len(rows) == 1:
            rows = np.repeat(rows, 2, axis=0)  # a trajectory has two rows at least
        try:
            lease.send_chunk(
                rows,
                start_ns,
                self.contract.control_dt_ns,
                observation_t_ns=reply.observation_t_ns,
                chunk_id=reply.chunk_id,
            )
        except LeaseError:
            return  # lost meanwhile; the loop sees it
        times = reply.timing
        self.summary.latency.add(
            capture=times.sent - reply.observation_t_ns,
            send=times.received - times.sent,
            queue=times.started - times.received,
            infer=times.done - times.started,
            reply=times.arrived - times.done,
        )
        self._consumed, self._starved, self._silence = 0, False, ""
        self._chunk = _Chunk(
            reply.chunk_id, start_ns, times.arrived, reply.observation_t_ns, len(rows)
        )

    # -- what the arms do --------------------------------------------------------------------

    def _follow_ticks(self) -> None:
        now_ns = time.monotonic_ns()
        self._refused_ns.clear()
        for robot in self.group.robots:
            ring = self.client.ring("arm", robot)
            self._next_tick[robot] = ring.count
            self._generation[robot] = ring.generation
            self._ticked_ns[robot] = now_ns

    def _read_ticks(self) -> None:
        """Count what the arms consumed. ControlPlaneError when one no longer follows."""
        for number, robot in enumerate(self.group.robots):
            for tick in self._new_ticks(robot):
                if tick["lifecycle"] != Lifecycle.ARMED:
                    state = Lifecycle(int(tick["lifecycle"])).name.lower()
                    fault = tick["fault"].decode(errors="replace")
                    raise ControlPlaneError(
                        f"{robot} is {state}{': ' + fault if fault else ''}; mend that, "
                        "`robot-stack reset`, and run the policy again"
                    )
                self._check_followed(robot, tick)
                if number == 0:
                    self._count(tick)

    def _new_ticks(self, robot: str) -> list[Any]:
        """The ticks since the last call. ControlPlaneError for a robot that is silent or new."""
        try:
            ring = self.client.ring("arm", robot)
            if ring.generation != self._generation[robot]:
                raise ControlPlaneError(f"{robot} was started again; run the policy again")
            first, ticks = ring.since(self._next_tick[robot])
        except SharedMemoryError as error:
            raise ControlPlaneError(f"{robot} is being started again ({error})") from error
        self._next_tick[robot] = first + len(ticks)
        now_ns = time.monotonic_ns()
        if ticks:
            self._ticked_ns[robot] = now_ns
        elif now_ns - self._ticked_ns[robot] > SILENCE_S * 1e9:
            raise ControlPlaneError(
                f"{robot} has been silent for {SILENCE_S:g} s; see `robot-stack status`"
            )
        return ticks

    def _check_followed(self, robot: str, tick: Any) -> None:
        """ControlPlaneError when the arm has refused the policy's targets for a while."""
        if not int(tick["difference"]) & Difference.REENGAGE:
            self._refused_ns.pop(robot, None)
            return
        since_ns = self._refused_ns.setdefault(robot, int(tick["t_ns"]))
        if int(tick["t_ns"]) - since_ns > REFUSED_S * 1e9:
            raise ControlPlaneError(
                f"the policy's targets are too far from {robot} to be followed; begin where the "
                "demonstrations did (--start policy), or look whether something holds the robot"
            )

    def _count(self, tick: Any) -> None:
        chunk = self._chunk
        if chunk is None:
            return
        starved = bool(int(tick["difference"]) & (Difference.STARVED | Difference.STALE))
        if chunk.first_row >= 0:
            self.summary.starved_ticks += starved and self.mode == "async"
        index, observed_ns = int(tick["chunk_index"]), int(tick["observation_t_ns"])
        if index < 0 or observed_ns != chunk.observed_ns or tick["chunk_id"] != chunk.chunk_id:
            return
        self._starved = starved
        self._consumed = index + 1 if starved else index
        if chunk.first_row < 0:
            chunk.first_row = index
            self._counts.append(index)
            self.summary.chunks += 1
            actuated_ns = int(tick["sent_t_ns"])
            self.summary.latency.add(
                actuate=actuated_ns - chunk.arrived_ns, total=actuated_ns - chunk.observed_ns
            )
            self.event(
                "chunk",
                json.dumps(
                    {
                        "id": chunk.chunk_id,
                        "observation_t_ns": chunk.observed_ns,
                        "latency_ms": round((actuated_ns - chunk.observed_ns) / 1e6, 2),
                        "first_row": index,
                    }
                ),
            )
