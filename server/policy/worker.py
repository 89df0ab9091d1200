"""A worker: holds one policy and one decoder state a session, and does what the engine orders.

The engine speaks to it in messages only (orders in, results out, one after the other), so that a
worker may as well be a process or another computer. ``ThreadWorker`` is a thread: torch lets go of
the GIL in its operators, and observations reach it without a copy.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
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
    """What the engine needs. No method blocks. Answers come in the order of the orders; the first
    one is ``Ready``, and ``Reset`` and ``Close`` have none."""

    def submit(self, order: Order) -> None:
        """Do this when what was ordered before is done."""

    def answers(self) -> list[Answer]:
        """What has been done since the last call."""

    def fileno(self) -> int:
        """Readable while answers wait."""

    def stop(self) -> None:
        """Do what has been ordered, then end."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the end and let go of everything; whether it has ended."""


@dataclass(slots=True)
class _Model:
    hosted: Hosted
    sessions: dict[str, Session] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)


class ThreadWorker:
    """A worker in a thread of this process; ``load`` is called in it.

    ``threads`` bounds torch's threads, of the whole process.
    """

    def __init__(self, load: Loader, generation: int, threads: int) -> None:
        self.generation = generation
        self._load = load
        self._threads = threads
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="policy-worker", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> None:
        self._orders.put(order)

    def answers(self) -> list[Answer]:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return []
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def fileno(self) -> int:
        return self._bell

    def stop(self) -> None:
        self._orders.put(None)

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1
        return True

    # -- in the thread -----------------------------------------------------------------------

    def _answer(self, answer: Answer) -> None:
        self._answers.append(answer)
        os.eventfd_write(self._bell, 1)

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
        while (order := self._orders.get()) is not None:
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
