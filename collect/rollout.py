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
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
GIVE_UP_S = 1.0  # without an answer the policy is asked again, with a new observation
SYNC_LEAD_S = 0.02  # from a chunk's arrival to its first row, when the robot waits for it
PAUSE_S = 0.1  # before a server that failed is asked again
# What a policy server may answer, or not, without the rollout ending: the arms hold meanwhile.
PASSING = ("expired", "timeout", "overloaded", "draining", "unreachable", "unknown_session")
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
    an arm ran out of rows, human takeovers, latency by stage."""

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
    ``resume`` is asked after a takeover, once the robots are free again: True goes on.
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
        resume: Callable[[], bool] = lambda: False,
    ) -> None:
        contract = policy.contract
        self.execute = contract.execute if execute is None else execute
        if not 1 <= self.execute <= contract.rows:
            raise ControlPlaneError(
                f"execute is {self.execute} rows; the policy's chunks have 1..{contract.rows}"
            )
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
        self._forget()

    def _forget(self) -> None:
        """No chunk is on its way or in use."""
        self._chunk: _Chunk | None = None
        self._asked: _Asked | None = None
        self._consumed = 0  # rows of the chunk in use that its arms have consumed
        self._starved = False
        self._pause_s = 0.0
        self._silence = ""  # why there is no chunk, as it was said

    def run(self, done: Callable[[], bool]) -> RolloutSummary:
        """Lease, arm, follow the policy until ``done()``; the arms then decelerate and hold.

        ControlPlaneError when an arm stops or faults, DeviceError when an observation is missing,
        PolicyError when the server refuses. LeaseError when the first lease is refused.
        """
        began = time.monotonic()
        try:
            while not done():
                if not self._hold_lease(done):
                    break
            self.summary.ended = self.summary.ended or "done"
        finally:
            self.summary.seconds = time.monotonic() - began
        return self.summary

    def _hold_lease(self, done: Callable[[], bool]) -> bool:
        """Run under one lease; False when a takeover ended the rollout."""
        with self.client.lease(self.group.name, "policy", source=Source.POLICY) as lease:
            self.client.request("arm", {"group": self.group.name}, timeout_s=40.0, keep=lease.renew)
            self._follow_ticks()
            self.policy.reset()
            self._forget()
            while not done() and lease.lost is None:
                self._turn(lease)
                lease.renew()
                time.sleep(POLL_S)
            lost = lease.lost
        if lost is None:
            return True
        self.summary.takeovers += 1
        self.event("takeover", lost)
        self.say(f"taken over: {lost}; the policy's chunks are dropped")
        self.policy.reset()  # a chunk in flight dies, what was selected before is no prior
        self._forget()
        return self._wait_for_hand_back(done)

    def _wait_for_hand_back(self, done: Callable[[], bool]) -> bool:
        """True when the robots are free and ``resume`` agrees."""
        looked = 0.0
        while not done():
            if time.monotonic() - looked > RETAKE_S:
                looked = time.monotonic()
                holder = self.client.status()["groups"][self.group.name]["holder"]
                if holder is None:
                    if self.resume():
                        self.event("handback", "the policy goes on")
                        return True
                    self.summary.ended = "taken over"
                    return False
            time.sleep(POLL_S)
        return True

    # -- one turn ----------------------------------------------------------------------------

    def _turn(self, lease: Lease) -> None:
        self._read_ticks()
        now_ns = time.monotonic_ns()
        try:
            reply = self.policy.poll()
            if reply is not None:
                self._take(reply, lease, time.monotonic_ns())
            asked = self._asked
            if asked is not None and time.monotonic() - asked.at_s > GIVE_UP_S:
                self._unanswered(f"no answer within {GIVE_UP_S:g} s")
            if self._asked is None and self._due(now_ns) and time.monotonic() > self._pause_s:
                self._ask(now_ns)
        except PolicyError as error:
            if error.code not in PASSING:
                raise
            self._unanswered(str(error))
            self._pause_s = time.monotonic() + PAUSE_S
            if error.code == "unknown_session":  # the server was started again
                self.policy.open()
                self._forget()

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
        if self.mode == "sync":
            return now_ns >= chunk.start_ns + self.execute * self.contract.control_dt_ns
        if (
            chunk.first_row < 0
            and now_ns < chunk.start_ns + chunk.rows * self.contract.control_dt_ns
        ):
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
            deadline_s=GIVE_UP_S,
        )
        self._asked = _Asked(observed_ns, time.monotonic())

    def _take(self, reply: PolicyReply, lease: Lease, now_ns: int) -> None:
        """Send a chunk to the arms, anchored to the capture time of its observation."""
        asked, self._asked = self._asked, None
        if asked is None or reply.observation_t_ns != asked.observed_ns:
            return  # answers a question that was given up
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
        for robot in self.group.robots:
            self._next_tick[robot] = self.client.ring("arm", robot).count

    def _read_ticks(self) -> None:
        """Count what the arms consumed. ControlPlaneError when one no longer follows."""
        for number, robot in enumerate(self.group.robots):
            ring = self.client.ring("arm", robot)
            try:
                first, ticks = ring.since(self._next_tick[robot])
            except SharedMemoryError:
                raise ControlPlaneError(f"{robot} is being started again") from None
            self._next_tick[robot] = first + len(ticks)
            for tick in ticks:
                if tick["lifecycle"] != Lifecycle.ARMED:
                    state = Lifecycle(int(tick["lifecycle"])).name.lower()
                    fault = tick["fault"].decode(errors="replace")
                    raise ControlPlaneError(
                        f"{robot} is {state}{': ' + fault if fault else ''}; mend that, "
                        "`robot-stack reset`, and run the policy again"
                    )
                if number == 0:
                    self._count(int(tick["chunk_id"]), int(tick["chunk_index"]), tick)

    def _count(self, chunk_id: int, index: int, tick: np.void) -> None:
        chunk = self._chunk
        if chunk is None or chunk_id != chunk.chunk_id or index < 0:
            return
        starved = bool(int(tick["difference"]) & (Difference.STARVED | Difference.STALE))
        self.summary.starved_ticks += starved and self.mode == "async"
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
                        "id": chunk_id,
                        "observation_t_ns": chunk.observed_ns,
                        "latency_ms": round((actuated_ns - chunk.observed_ns) / 1e6, 2),
                        "first_row": index,
                    }
                ),
            )
