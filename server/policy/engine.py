"""The engine: sessions, queues, batches, deadlines and generations. Knows no sockets, never waits.
Called by one thread at a time: the server holds a lock meanwhile.

Each hosted policy has one worker and at most one batch with it. While that runs, each session's
newest request waits; when it is done, what waits becomes the next batch, across clients. Reloading
makes a second worker beside the first; once that is warm, the first one's work is awaited (drain),
and everything after that goes to the second (swap): no answer mixes generations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError

from .lanes import LaneEnd
from .metrics import Metrics
from .requests import Observations
from .sessions import Owner, Session, Sessions
from .worker import (
    Answer,
    Batch,
    Close,
    Decoded,
    Failure,
    Loader,
    Observation,
    Open,
    Opened,
    Ready,
    Reset,
    Worker,
)

__all__ = ["Ask", "Engine", "Hosting", "Reply"]

IDLE_CHECK_NS = 1_000_000_000
END_S = 10.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Who asked, when (server's and client's clock), the number to answer to, and by which lane."""

    owner: Owner
    id: int
    received_ns: int
    sent_ns: int
    lane: LaneEnd | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the one who asked; ``started_ns`` and ``done_ns`` only with a chunk."""

    ask: Ask
    kind: str
    body: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    started_ns: int | None = None
    done_ns: int | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request for a chunk, in the queue or with the worker."""

    ask: Ask
    session: Session
    epoch: int
    observation: Observation
    observation_t_ns: int
    deadline_ns: int | None


@dataclass(eq=False, slots=True)
class Hosting:
    """One policy under its name: the worker that serves it and the one that is to follow."""

    name: str
    load: Loader
    worker: Worker
    contract: PolicyContract | None = None
    observations: Observations | None = None
    decoders: tuple[str, ...] = ()
    failure: Failure | None = None
    generation: int = 1
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    running: tuple[_Waiting, ...] = ()
    opening: dict[str, tuple[Ask | None, Session]] = field(default_factory=dict)
    held: list[tuple[Ask, Session]] = field(default_factory=list)
    next: Worker | None = None
    next_load: Loader | None = None
    next_ready: Ready | None = None
    reloads: list[Ask] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.contract is not None

    @property
    def draining(self) -> bool:
        return self.next_ready is not None


class Engine:
    """``make_worker(loader, generation)`` makes workers; ``send`` takes replies and never waits."""

    def __init__(
        self,
        loaders: Mapping[str, Loader],
        make_worker: Callable[[Loader, int], Worker],
        send: Callable[[Reply], None],
        *,
        metrics: Metrics,
        sessions: Sessions,
        batch: int,
    ) -> None:
        self._make_worker = make_worker
        self._send = send
        self._batch = batch
        self._metrics = metrics
        self.sessions = sessions
        self.ending = False
        self._idle_checked = 0
        self._retired: list[Worker] = []
        self.hostings = {
            name: Hosting(name, load, make_worker(load, 1)) for name, load in loaders.items()
        }

    # -- what the server asks ----------------------------------------------------------------

    def hosting(self, name: object) -> Hosting:
        """The policy of a name, or the only one where the name is empty, loaded and warm."""
        known = ", ".join(self.hostings)
        if not name and len(self.hostings) == 1:
            name = next(iter(self.hostings))
        if not isinstance(name, str) or name not in self.hostings:
            raise PolicyError(
                f"no policy {name!r} is served here (served: {known})", "unknown_policy"
            )
        hosting = self.hostings[name]
        if hosting.failure is not None and not hosting.ready:
            raise PolicyError(f"policy {name!r}: {hosting.failure.text}", hosting.failure.code)
        if not hosting.ready:
            raise PolicyError(f"policy {name!r} is being loaded and warmed up", "not_ready")
        return hosting

    def open(self, ask: Ask, hosting: Hosting, decoder: str, options: Mapping[str, Any]) -> None:
        """A new session; answered when its decoder is ready."""
        self._refuse_when_ending()
        session = self.sessions.open(ask.owner, hosting.name, decoder, options, ask.received_ns)
        if hosting.draining:
            hosting.held.append((ask, session))
        else:
            self._order_open(hosting, ask, session)

    def reset(self, ask: Ask, session: Session) -> None:
        """A new epoch: what waits or runs of the session dies."""
        hosting = self.hostings[session.policy]
        session.epoch += 1
        self._drop_waiting(hosting, session, "stale_epoch", "the session was reset")
        hosting.worker.submit(Reset(session.id))
        self._send(Reply(ask, "opened", _opened(session, hosting)))

    def close(self, session: Session) -> None:
        """The end of a session; what it waits for is answered ``unknown_session``."""
        hosting = self.hostings[session.policy]
        self.sessions.close(session)
        self._drop_waiting(hosting, session, "unknown_session", "the session was closed")
        if session.id not in (s.id for _, s in hosting.held):
            hosting.worker.submit(Close(session.id))

    def infer(
        self,
        ask: Ask,
        session: Session,
        observation: Observation,
        observation_t_ns: int,
        deadline_ns: int | None,
    ) -> None:
        """Queue a request for a chunk, in the place of an older one of the session."""
        self._refuse_when_ending()
        hosting = self.hostings[session.policy]
        older = hosting.waiting.get(session.id)
        hosting.waiting[session.id] = _Waiting(
            ask, session, session.epoch, observation, observation_t_ns, deadline_ns
        )
        if older is not None:
            self._refuse(older, "superseded", "a newer request of the session took its place")
        self._dispatch(hosting)

    def reload(self, ask: Ask, hosting: Hosting, load: Loader) -> None:
        """Load anew beside what runs; answered after the swap."""
        if hosting.next is not None:
            raise PolicyError(f"policy {hosting.name!r} is being reloaded already", "overloaded")
        hosting.next_load = load
        hosting.reloads = [ask]
        hosting.next = self._make_worker(load, hosting.generation + 1)

    # -- what the loop calls -----------------------------------------------------------------

    def take(self, worker: Worker, answer: Answer) -> None:
        """What a worker has done; of one that was replaced it no longer counts."""
        for hosting in self.hostings.values():
            if hosting.worker is worker:
                self._take(hosting, answer)
            elif hosting.next is worker and isinstance(answer, Ready):
                self._next_ready(hosting, answer)
            else:
                continue
            if hosting.draining and not hosting.running and not hosting.opening:
                self._swap(hosting)

    def turn(self, now_ns: int) -> int | None:
        """Take up what time has done: shed requests past their deadline and sessions that are
        idle. Returns the next moment when time will have."""
        deadlines = [self._shed(hosting, now_ns) for hosting in self.hostings.values()]
        if now_ns - self._idle_checked > IDLE_CHECK_NS:
            self._idle_checked = now_ns
            for session in self.sessions.idle(now_ns):
                self._metrics.count("policy_sessions_expired_total", policy=session.policy)
                self.close(session)
            self._retired = [worker for worker in self._retired if not worker.join(0.0)]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def begin_end(self) -> None:
        """Take no more; what waits is refused, what runs is finished."""
        self.ending = True
        for hosting in self.hostings.values():
            for waiting in hosting.waiting.values():
                self._refuse(waiting, "draining", "the server is ending")
            hosting.waiting.clear()

    @property
    def busy(self) -> bool:
        return any(hosting.running for hosting in self.hostings.values())

    @property
    def waiting(self) -> bool:
        """Whether requests wait, for which time may run out."""
        return any(hosting.waiting for hosting in self.hostings.values())

    def end(self) -> None:
        """End the workers."""
        workers = list(self._retired)
        for hosting in self.hostings.values():
            workers += [w for w in (hosting.worker, hosting.next) if w is not None]
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(END_S)

    # -- queues ------------------------------------------------------------------------------

    def _dispatch(self, hosting: Hosting) -> None:
        if hosting.running or hosting.draining or self.ending or not hosting.waiting:
            return
        now = time.monotonic_ns()
        self._shed(hosting, now)
        taken = tuple(
            hosting.waiting.pop(session) for session in list(hosting.waiting)[: self._batch]
        )
        if taken:
            hosting.running = taken
            hosting.worker.submit(Batch(tuple(waiting.observation for waiting in taken)))

    def _shed(self, hosting: Hosting, now_ns: int) -> int | None:
        """Refuse what is past its deadline; the next deadline of those that wait."""
        following: int | None = None
        if not hosting.waiting:
            return None
        for key, waiting in list(hosting.waiting.items()):
            if waiting.deadline_ns is None:
                continue
            if waiting.deadline_ns <= now_ns:
                del hosting.waiting[key]
                late = (now_ns - waiting.ask.received_ns) / 1e6
                self._refuse(
                    waiting,
                    "expired",
                    f"its deadline passed while it waited ({late:.1f} ms): the server is too busy "
                    "for this deadline, see its metrics",
                )
            elif following is None or waiting.deadline_ns < following:
                following = waiting.deadline_ns
        return following

    def _drop_waiting(self, hosting: Hosting, session: Session, code: str, text: str) -> None:
        waiting = hosting.waiting.pop(session.id, None)
        if waiting is not None:
            self._refuse(waiting, code, text)

    def _refuse(self, waiting: _Waiting, code: str, text: str) -> None:
        self._metrics.count("policy_requests_total", policy=waiting.session.policy, outcome=code)
        self._send(Reply(waiting.ask, "error", {"code": code, "text": text}))

    def _refuse_when_ending(self) -> None:
        if self.ending:
            raise PolicyError("the server is ending", "draining")

    # -- what workers have done --------------------------------------------------------------

    def _take(self, hosting: Hosting, answer: Answer) -> None:
        match answer:
            case Ready():
                hosting.contract, hosting.decoders = answer.contract, answer.decoders
                hosting.failure = answer.failure
                if answer.contract is not None:
                    hosting.observations = Observations(answer.contract)
            case Opened():
                self._opened(hosting, answer)
            case Decoded():
                running, hosting.running = hosting.running, ()
                for waiting, result in zip(running, answer.results, strict=True):
                    if not self.sessions.alive(waiting.session, waiting.epoch):
                        self._refuse(waiting, "stale_epoch", "the session was reset or closed")
                    elif isinstance(result, Failure):
                        self._refuse(waiting, result.code, result.text)
                    else:
                        self._reply(hosting, waiting, result.chunk_id, result.rows, answer)
                self._dispatch(hosting)
                self._metrics.observe("policy_batch_size", len(running), policy=hosting.name)
                seconds = (answer.done_ns - answer.started_ns) / 1e9
                self._metrics.observe("policy_inference_seconds", seconds, policy=hosting.name)

    def _reply(
        self,
        hosting: Hosting,
        waiting: _Waiting,
        chunk_id: int,
        rows: NDArray[np.float64],
        answer: Decoded,
    ) -> None:
        body = {
            "session": waiting.session.id,
            "epoch": waiting.epoch,
            "chunk_id": chunk_id,
            "observation_t_ns": waiting.observation_t_ns,
            "generation": hosting.generation,
        }
        self._send(
            Reply(waiting.ask, "chunk", body, {"actions": rows}, answer.started_ns, answer.done_ns)
        )
        queued = (answer.started_ns - waiting.ask.received_ns) / 1e9
        replied = (time.monotonic_ns() - waiting.ask.received_ns) / 1e9
        self._metrics.observe("policy_queue_seconds", queued, policy=hosting.name)
        self._metrics.observe("policy_reply_seconds", replied, policy=hosting.name)
        self._metrics.count("policy_requests_total", policy=hosting.name, outcome="ok")

    def _order_open(self, hosting: Hosting, ask: Ask | None, session: Session) -> None:
        hosting.opening[session.id] = (ask, session)
        hosting.worker.submit(Open(session.id, session.decoder, session.options))

    def _opened(self, hosting: Hosting, answer: Opened) -> None:
        ask, session = hosting.opening.pop(answer.session)
        if answer.failure is not None:
            self.sessions.close(session)
            self._drop_waiting(hosting, session, answer.failure.code, answer.failure.text)
            if ask is not None:
                failure = {"code": answer.failure.code, "text": answer.failure.text}
                self._send(Reply(ask, "error", failure))
        elif ask is not None:
            self._send(Reply(ask, "opened", _opened(session, hosting)))

    # -- reloading ---------------------------------------------------------------------------

    def _next_ready(self, hosting: Hosting, ready: Ready) -> None:
        if ready.failure is None and hosting.contract is not None and ready.contract is not None:
            found = _interface_differences(hosting.contract, ready.contract)
            if found:
                text = (
                    "the new checkpoint has another interface, so robots could not go on with it: "
                    + "; ".join(found)
                    + "; serve it under another name"
                )
                ready = Ready(None, failure=Failure("contract_mismatch", text))
        if ready.failure is None:
            hosting.next_ready = ready
            return
        assert hosting.next is not None
        hosting.next.stop()
        self._retired.append(hosting.next)
        hosting.next = hosting.next_load = None
        asks, hosting.reloads = hosting.reloads, []
        for ask in asks:
            failure = {"code": ready.failure.code, "text": ready.failure.text}
            self._send(Reply(ask, "error", failure))

    def _swap(self, hosting: Hosting) -> None:
        assert hosting.next is not None
        assert hosting.next_load is not None
        assert hosting.next_ready is not None
        hosting.worker.stop()
        self._retired.append(hosting.worker)
        hosting.worker, hosting.load = hosting.next, hosting.next_load
        hosting.contract = hosting.next_ready.contract
        hosting.decoders, hosting.failure = hosting.next_ready.decoders, None
        hosting.next = hosting.next_load = hosting.next_ready = None
        hosting.generation += 1
        self._metrics.count("policy_reloads_total", policy=hosting.name)
        held, hosting.held = hosting.held, []
        fresh = {session.id for _, session in held}
        for session in self.sessions.of(hosting.name):
            if session.id not in fresh:
                self._order_open(hosting, None, session)
        for ask, session in held:
            if self.sessions.alive(session, session.epoch):
                self._order_open(hosting, ask, session)
        asks, hosting.reloads = hosting.reloads, []
        for ask in asks:
            self._send(Reply(ask, "reloaded", {"generation": hosting.generation}))
        self._dispatch(hosting)


def _opened(session: Session, hosting: Hosting) -> dict[str, Any]:
    return {
        "session": session.id,
        "epoch": session.epoch,
        "policy": hosting.name,
        "generation": hosting.generation,
    }


def _interface_differences(old: PolicyContract, new: PolicyContract) -> list[str]:
    found = old.differences(new)
    for name in ("observations", "horizon", "first_action"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            found.append(f"{name}: served is {before}, the new one has {after}")
    return found
