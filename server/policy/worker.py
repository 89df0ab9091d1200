"""A worker: holds one policy and one decoder state a session, and does what the engine orders.

The engine speaks to it in messages only (orders in, results out, one after the other), so that a
worker may as well be a process or another computer. ``ThreadWorker`` is a thread: torch lets go of
the GIL in its operators, and observations reach it without a copy. While it has nothing to do it
waits for clients' lanes itself: a request that it takes up costs no change of threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.decoding.table import allowed, check, make_decoder
from policies.hosted import Hosted
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError, RobotStackError

__all__ = [
    "Answer",
    "Batch",
    "Chunk",
    "Close",
    "Decoded",
    "Failure",
    "Loader",
    "Observation",
    "Open",
    "Opened",
    "Ready",
    "Reports",
    "Reset",
    "ThreadWorker",
    "Worker",
]

Loader = Callable[[], Hosted]

GENERATION_SHIFT = 32  # a chunk's number on the wire: generation, then the session's own count

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something was not done: a code for programs and words for people."""

    code: str
    text: str


# -- orders ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Begin decoder state for a session."""

    session: str
    decoder: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget the chunks of a session."""

    session: str


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a session."""

    session: str


@dataclass(frozen=True, slots=True)
class Observation:
    """One request for a chunk: state (To, S) float32, uint8 images (To, H, W, 3) a camera, and
    what the robot executes meanwhile (``Session.begin``)."""

    session: str
    state: NDArray[np.float32]
    images: Mapping[str, NDArray[np.uint8]]
    previous_chunk: int
    consumed: int
    delay: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Chunks for several sessions in one go; a session appears once at most."""

    observations: tuple[Observation, ...]


# -- results ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The policy is loaded and has been run: ``decoders`` are those it allows. Or it is not."""

    contract: PolicyContract | None
    decoders: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to ``Open``."""

    session: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows (H, D) float64 in the contract's units."""

    chunk_id: int
    rows: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The answer to ``Batch``, in its order; times are this computer's monotonic ns."""

    results: tuple[Chunk | Failure, ...]
    started_ns: int
    done_ns: int


Order = Open | Reset | Close | Batch
Answer = Ready | Opened | Decoded


class Worker(Protocol):
    """What the engine needs. No method blocks. Answers go to ``Reports.answered``, in the order of
    the orders; the first one is ``Ready``, and ``Reset`` and ``Close`` have none."""

    def submit(self, order: Order) -> None:
        """Do this when what was ordered before is done."""

    def listen(self, lane: int) -> None:
        """While there is nothing to do, tell ``Reports.heard`` when this descriptor is readable.
        Whoever cannot leaves it to the server's loop."""

    def stop(self) -> None:
        """Do what has been ordered, then end."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the end and let go of everything; whether it has ended."""


class Reports(Protocol):
    """Whom a worker tells, from a thread of its own."""

    def answered(self, worker: Worker, answer: Answer) -> None:
        """An order is done."""

    def heard(self, lanes: Sequence[int]) -> None:
        """These descriptors are readable."""


@dataclass(slots=True)
class _Model:
    hosted: Hosted
    sessions: dict[str, Session] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)


class ThreadWorker:
    """A worker in a thread of this process; ``load`` is called in it.

    ``threads`` bounds torch's threads, of the whole process.
    """

    def __init__(self, load: Loader, generation: int, threads: int, reports: Reports) -> None:
        self.generation = generation
        self._load = load
        self._threads = threads
        self._reports = reports
        self._orders: deque[Order | None] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waits = select.epoll()
        self._waits.register(self._bell, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="policy-worker", daemon=True)
        self._thread.start()

    def submit(self, order: Order | None) -> None:
        self._orders.append(order)
        if threading.current_thread() is not self._thread:
            os.eventfd_write(self._bell, 1)

    def listen(self, lane: int) -> None:
        # Exclusive: Linux wakes the first one that waits, which is this thread or the loop's.
        with contextlib.suppress(FileExistsError):
            self._waits.register(lane, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def stop(self) -> None:
        self.submit(None)

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        if not self._waits.closed:
            self._waits.close()
            os.close(self._bell)
        return True

    # -- in the thread -----------------------------------------------------------------------

    def _answer(self, answer: Answer) -> None:
        self._reports.answered(self, answer)

    def _next(self) -> Order | None:
        """What to do next; None: end."""
        while not self._orders:
            ready = [number for number, _ in self._waits.poll()]
            if self._bell in ready:
                ready.remove(self._bell)
                os.eventfd_read(self._bell)
            if ready:
                self._reports.heard(ready)
        return self._orders.popleft()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            model = _Model(self._load())
            _open(model, Open("", "receding_horizon", {}))
            model.sessions.clear()
            self._answer(Ready(model.hosted.contract, tuple(allowed(model.hosted))))
        except Exception as error:  # noqa: BLE001  # whatever a checkpoint does, the server lives
            self._answer(Ready(None, failure=_failure(error, "load_failed")))
            return
        while (order := self._next()) is not None:
            match order:
                case Open():
                    self._answer(_opened(model, order))
                case Reset():
                    if order.session in model.sessions:
                        model.sessions[order.session].reset()
                case Close():
                    model.sessions.pop(order.session, None)
                case Batch():
                    started = time.monotonic_ns()
                    results = _decode(model, order.observations, self.generation)
                    self._answer(Decoded(results, started, time.monotonic_ns()))
            del order  # frees the observation's frames while waiting for the next


def _opened(model: _Model, order: Open) -> Opened:
    try:
        _open(model, order)
    except Exception as error:  # noqa: BLE001
        return Opened(order.session, _failure(error, "decoder_refused"))
    return Opened(order.session)


def _open(model: _Model, order: Open) -> None:
    """The first session of a decoder runs it once: no robot waits for a first inference."""
    decoder = make_decoder(order.decoder, order.options)
    check(decoder, model.hosted)
    kind = repr(decoder)
    if kind not in model.warm:
        contract = model.hosted.contract
        session = Session(decoder, model.hosted, 0)
        previous = -1
        for _ in range(2):  # the second one with a prior, as all but the first are
            request = Request(
                session,
                session.begin(previous, 0, 0),
                np.zeros((contract.observations, len(contract.state)), np.float32),
                {
                    camera.name: np.zeros(
                        (contract.observations, camera.height, camera.width, 3), np.uint8
                    )
                    for camera in contract.cameras
                },
            )
            ((previous, _rows),) = decode(model.hosted, [request])
        model.warm.add(kind)
    seed = int.from_bytes(os.urandom(8), "little")
    model.sessions[order.session] = Session(decoder, model.hosted, seed)


def _decode(
    model: _Model, observations: tuple[Observation, ...], generation: int
) -> tuple[Chunk | Failure, ...]:
    try:
        return _decode_together(model, observations, generation)
    except Exception as error:  # noqa: BLE001  # whatever a model does, the server lives
        if len(observations) == 1:
            return (_failure(error, "internal"),)
    # One of them did it; the others shall not suffer.
    return tuple(_decode(model, (one,), generation)[0] for one in observations)


def _decode_together(
    model: _Model, observations: tuple[Observation, ...], generation: int
) -> tuple[Chunk | Failure, ...]:
    requests = []
    for one in observations:
        session = model.sessions[one.session]
        step = session.begin(_own(one.previous_chunk, generation), one.consumed, one.delay)
        requests.append(Request(session, step, one.state, one.images))
    chunks = decode(model.hosted, requests)
    return tuple(
        Chunk(generation << GENERATION_SHIFT | number, rows)
        if np.isfinite(rows).all()
        else Failure("internal", "the policy answered NaN or infinity, which no robot may follow")
        for number, rows in chunks
    )


def _own(chunk_id: int, generation: int) -> int:
    """The session's own number of a chunk; -1 when weights of another generation made it."""
    if chunk_id >> GENERATION_SHIFT != generation:
        return -1
    return chunk_id & (1 << GENERATION_SHIFT) - 1


def _failure(error: Exception, code: str) -> Failure:
    if isinstance(error, PolicyError):
        return Failure(code if error.code == "refused" else error.code, str(error))
    if isinstance(error, RobotStackError):
        return Failure(code, str(error))
    log.error("%s", code, exc_info=error)
    return Failure(code, f"{type(error).__name__}: {error}")
