"""The policy server's sockets: one loop that takes requests, asks the engine, sends replies.

The loop never computes and never waits for a worker; large frames are neither copied on the way in
nor on the way out. Workers tell from their threads what they have done, and what they heard in
lanes while they were idle: a lock keeps that and the loop's turns apart, and only the loop touches
ZeroMQ's sockets.

    server = PolicyServer({"pusht": lambda: Hosted(policy)}, ["ipc:///tmp/policy.ipc"])
    server.run()  # until stop(), from any thread or signal handler
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import zmq

from robot_stack import __version__
from robot_stack.clock import clock_id
from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError, MessageError, PolicyError, RobotStackError
from robot_stack.messages import MAX_BYTES, Message, decode, encode

from . import requests
from .endpoints import bind, is_ipc, require_keys
from .engine import Ask, Engine, Reply
from .keys import Authenticator, ServerKeys
from .lanes import LaneEnd, Lanes, lane_path
from .metrics import Labels, Metrics, resident_bytes
from .metrics_page import MetricsPage
from .sessions import Owner, Sessions
from .worker import Answer, Loader, Reports, ThreadWorker, Worker

__all__ = ["PolicyServer"]

POLL_MS = 250
BURST = 64  # messages of one socket before the others get their turn
HIGH_WATER = 64  # messages a connection may have waiting on either side
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000
DRAIN_S = 10.0
LINGER_MS = 200
SIZES = (1, 2, 4, 8, 16, 32, 64)

log = logging.getLogger(__name__)


class PolicyServer:
    """Hosts policies by name behind ROUTER sockets. The constructor binds; ``run`` serves.

    ``models`` maps names to functions that load what is hosted: called in a worker's thread, and
    again at a reload. ``endpoints`` are ``ipc://`` paths and ``tcp://`` addresses; without ``keys``
    only of this computer (PolicyError ``keys``). A request's arrays may have ``max_bytes`` in all.
    ``reload_from(strong, weak)`` makes a loader of checkpoint paths, for `policy reload`; without
    it a policy can only be loaded again from where it came. ``make_worker(loader, generation,
    threads, reports)`` makes what holds a policy.
    """

    def __init__(
        self,
        models: Mapping[str, Loader],
        endpoints: Sequence[str],
        *,
        keys: ServerKeys | None = None,
        threads: int = 1,
        batch: int = 8,
        sessions: int = 256,
        idle_s: float = 300.0,
        max_bytes: int = MAX_BYTES,
        metrics_port: int | None = None,
        reload_from: Callable[[str, str | None], Loader] | None = None,
        make_worker: Callable[[Loader, int, int, Reports], Worker] = ThreadWorker,
    ) -> None:
        if not models or not endpoints:
            raise PolicyError("a policy server needs a policy and an endpoint at least")
        for endpoint in endpoints:
            require_keys(endpoint, keys=keys is not None)
        self._models = dict(models)
        self._threads, self._batch = threads, batch
        self._max_bytes = max_bytes
        self._reload_from = reload_from
        self._make_worker = make_worker
        self._started_ns = time.monotonic_ns()
        self._ready = self._stopping = self._ended = False
        self._lock = threading.Lock()
        self._outbox: list[tuple[Owner, list[bytes | memoryview]]] = []  # for ZeroMQ to take
        self._sessions = Sessions(sessions, idle_s)
        self._engine: Engine | None = None
        self._handlers: dict[str, Callable[[Ask, Message], None]] = {
            "hello": self._hello,
            "open": self._open,
            "reset": self._reset,
            "close": self._close,
            "infer": self._infer,
            "health": self._health,
            "metrics": self._metrics_text,
            "reload": self._reload,
        }
        self.metrics = Metrics()
        _describe(self.metrics)
        self.metrics.gauges(self._gauges)
        with contextlib.ExitStack() as stack:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(self._context.destroy, LINGER_MS)
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self._bell)
            self._guard = None if keys is None else Authenticator(self._context, keys)
            self.endpoints: list[str] = []
            self._sockets: list[zmq.Socket[bytes]] = []
            self._lanes: dict[int, Lanes] = {}  # by the index of the socket that they lie beside
            for endpoint in endpoints:
                socket = self._router(guarded=not is_ipc(endpoint))
                bound, lock = bind(socket, endpoint)
                if lock is not None:
                    stack.callback(os.close, lock)
                    path = lane_path(bound)
                    if path is not None:
                        lanes = self._lanes[len(self._sockets)] = Lanes(path, max_bytes)
                        stack.callback(lanes.close)
                self._sockets.append(socket)
                self.endpoints.append(bound)
            self._page = None
            if metrics_port is not None:
                self._page = MetricsPage(metrics_port, self.metrics.text, self.health)
                stack.callback(self._page.close)
            self._resources = stack.pop_all()

    def _router(self, *, guarded: bool) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self._max_bytes)  # up to it, the reply names the cap
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply to nobody is an error, not a silence
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a client that reconnects keeps its name
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if guarded and self._guard is not None:
            self._guard.guard(socket)
        return socket

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        """Load, warm up and serve until ``stop``; PolicyError when a policy cannot be loaded."""
        with self._lock:
            self._engine = Engine(
                self._models,
                lambda load, generation: self._make_worker(load, generation, self._threads, self),
                self._reply,
                metrics=self.metrics,
                sessions=self._sessions,
                batch=self._batch,
            )
        try:
            self._serve(self._engine)
        finally:
            self._engine.end()
            with self._lock:  # a worker that does not end finds nothing to tell it to
                self._ended = True
                self._resources.close()

    @property
    def metrics_page(self) -> str:
        """Where metrics are shown over HTTP; empty where they are not."""
        return "" if self._page is None else f"http://127.0.0.1:{self._page.port}/metrics"

    def stop(self) -> None:
        """End ``run`` once what is being computed is answered."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it has ended already
            os.eventfd_write(self._bell, 1)

    def _serve(self, engine: Engine) -> None:
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        if self._guard is not None:
            poller.register(self._guard.socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        for lanes in self._lanes.values():
            poller.register(lanes.fileno(), zmq.POLLIN)
        following: int | None = None
        ends = float("inf")
        while True:
            events = dict(poller.poll(_timeout_ms(following)))
            if self._bell in events:
                os.eventfd_read(self._bell)
            with self._lock:
                following = self._turn(engine, events)
                if self._stopping:
                    if not engine.ending:
                        engine.begin_end()
                        self._post()
                        ends = time.monotonic() + DRAIN_S
                    if not engine.busy or time.monotonic() > ends:
                        return

    def _turn(self, engine: Engine, events: Mapping[Any, int]) -> int | None:
        """Take up what has come; the next moment when time will have done something."""
        if self._guard is not None and self._guard.socket in events:
            refused = self._guard.answer()
            if refused is not None:
                self.metrics.count("policy_refused_keys_total")
                log.warning("a client at %s with an unknown key was turned away", refused)
        for index, socket in enumerate(self._sockets):
            if index in self._lanes and (socket in events or self._lanes[index].fileno() in events):
                self._take_lane(index, self._lanes[index].receive())
            if socket in events:
                self._receive(index, socket)
        following = engine.turn(time.monotonic_ns())
        if not self._ready:
            self._become_ready(engine)
        self._post()
        return following

    # -- what workers tell, from their threads ---------------------------------------------------

    def answered(self, worker: Worker, answer: Answer) -> None:
        """``Reports.answered``"""
        with self._lock:
            if not self._ended:
                self._serving.take(worker, answer)
                self._ring()

    def heard(self, lanes: Sequence[int]) -> None:
        """``Reports.heard``"""
        with self._lock:
            if not self._ended:
                for index, beside in self._lanes.items():
                    self._take_lane(index, beside.read(lanes))
                self._ring()

    def _ring(self) -> None:
        """Wake the loop if there is something for it to do."""
        if self._outbox or self._stopping or not self._ready or self._serving.waiting:
            os.eventfd_write(self._bell, 1)

    def _become_ready(self, engine: Engine) -> None:
        for name, hosting in engine.hostings.items():
            if hosting.failure is not None:
                raise PolicyError(f"policy {name!r}: {hosting.failure.text}", hosting.failure.code)
        if all(hosting.ready for hosting in engine.hostings.values()):
            gc.collect()
            gc.freeze()  # a full collection with torch imported takes 145 ms
            self._ready = True
            log.info("ready: %s", ", ".join(engine.hostings))

    # -- messages ----------------------------------------------------------------------------

    def _receive(self, index: int, socket: zmq.Socket[bytes]) -> None:
        for _ in range(BURST):
            if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            received = time.monotonic_ns()
            key = ""
            if self._guard is not None and not is_ipc(self.endpoints[index]):
                key = str(frames[0].get("User-Id"))
            owner = Owner(index, frames[0].bytes, key)
            if index in self._lanes:  # what it sent by its lane came before
                self._take_lane(index, self._lanes[index].read_of(owner.identity))
            message: Message | MessageError
            try:
                message = decode([frame.buffer for frame in frames[1:]], max_bytes=self._max_bytes)
            except MessageError as error:
                message = error
            self._take(owner, message, received, None)

    def _take_lane(
        self, index: int, heard: Iterable[tuple[LaneEnd, Message | MessageError]]
    ) -> None:
        for lane, message in heard:
            received = time.monotonic_ns()
            self._take(Owner(index, lane.identity, ""), message, received, lane)

    def _take(
        self, owner: Owner, message: Message | MessageError, received: int, lane: LaneEnd | None
    ) -> None:
        """One request, by ZeroMQ or by a lane."""
        if isinstance(message, MessageError):
            self._fault(Ask(owner, 0, received, -1, lane), "bad_message", str(message))
            return
        sent = message.body.get("sent_ns")
        ask = Ask(owner, message.id, received, sent if type(sent) is int else -1, lane)
        self._answer(ask, message)
        size = sum(array.nbytes for array in message.arrays.values())
        self.metrics.count("policy_received_bytes_total", size)

    def _answer(self, ask: Ask, message: Message) -> None:
        handler = self._handlers.get(message.kind)
        if handler is None:
            known = ", ".join(self._handlers)
            text = f"unknown request {message.kind[:64]!r} (known: {known})"
            self._fault(ask, "unknown_request", text)
            return
        try:
            handler(ask, message)
        except PolicyError as error:
            self._fault(ask, error.code, str(error))
        except RobotStackError as error:
            self._fault(ask, "bad_request", str(error))
        except Exception as error:  # whatever a client sends, the others go on
            log.exception("request %r", message.kind)
            self._fault(ask, "internal", f"{message.kind}: {error!r}")

    def _fault(self, ask: Ask, code: str, text: str) -> None:
        self.metrics.count("policy_faults_total", code=code)
        self._reply(Reply(ask, "error", {"code": code, "text": text}))

    def _reply(self, reply: Reply) -> None:
        ask = reply.ask
        timing = {"received_ns": ask.received_ns}
        if reply.started_ns is not None and reply.done_ns is not None:
            timing |= {"started_ns": reply.started_ns, "done_ns": reply.done_ns}
        timing["replied_ns"] = time.monotonic_ns()
        body = {**reply.body, "sent_ns": ask.sent_ns, "timing": timing}
        if reply.kind == "opened" and ask.owner.socket in self._lanes:
            body["lane"] = str(self._lanes[ask.owner.socket].path)
        message = Message(reply.kind, body, reply.arrays, ask.id)
        if ask.lane is None or not ask.lane.send(message):
            self._outbox.append((ask.owner, encode(message)))

    def _post(self) -> None:
        """Send by ZeroMQ what lies in the outbox."""
        for owner, frames in self._outbox:
            try:
                self._sockets[owner.socket].send_multipart(
                    [owner.identity, *frames], zmq.NOBLOCK, copy=False
                )
            except zmq.ZMQError as error:  # it has gone, or does not read its replies
                self.metrics.count("policy_unsent_replies_total", reason=error.strerror or "")
        self._outbox.clear()

    # -- requests ----------------------------------------------------------------------------

    @property
    def _serving(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _hello(self, ask: Ask, message: Message) -> None:
        hosting = self._serving.hosting(requests.text(message.body, "policy", ""))
        assert hosting.contract is not None
        body = {
            "server": f"robot-stack {__version__}",
            "clock": clock_id(),
            "policies": list(self._serving.hostings),
            "policy": hosting.name,
            "contract": hosting.contract.to_json(),
            "decoders": list(hosting.decoders),
            "generation": hosting.generation,
            "ready": hosting.ready,
        }
        self._reply(Reply(ask, "contract", body))

    def _open(self, ask: Ask, message: Message) -> None:
        hosting = self._serving.hosting(requests.text(message.body, "policy", ""))
        assert hosting.contract is not None
        if "contract" in message.body:
            try:
                offered = PolicyContract.from_json(
                    requests.mapping(message.body, "contract"), "the offered contract"
                )
            except ConfigError as error:
                raise PolicyError(str(error), "contract_mismatch") from error
            found = hosting.contract.differences(offered)
            if found:
                raise PolicyError(
                    f"policy {hosting.name!r} does not fit this robot: {'; '.join(found)}",
                    "contract_mismatch",
                )
        decoder = requests.mapping(message.body, "decoder")
        self._serving.open(
            ask,
            hosting,
            requests.text(decoder, "name", "receding_horizon"),
            requests.mapping(decoder, "options"),
        )

    def _reset(self, ask: Ask, message: Message) -> None:
        session = self._sessions.get(message.body.get("session"), ask.owner, ask.received_ns)
        self._serving.reset(ask, session)

    def _close(self, ask: Ask, message: Message) -> None:
        session = self._sessions.get(message.body.get("session"), ask.owner, ask.received_ns)
        self._serving.close(session)
        self._reply(Reply(ask, "closed", {"session": session.id}))

    def _infer(self, ask: Ask, message: Message) -> None:
        body = message.body
        session = self._sessions.get(body.get("session"), ask.owner, ask.received_ns)
        if body.get("epoch") != session.epoch:
            raise PolicyError(
                f"epoch {body.get('epoch')!r} is over, the session is in {session.epoch}",
                "stale_epoch",
            )
        hosting = self._serving.hosting(session.policy)
        assert hosting.observations is not None
        observation, t_ns = hosting.observations.read(message, session.id)
        limit = requests.deadline_s(body)
        deadline = None if limit is None else ask.received_ns + int(limit * 1e9)
        if ask.lane is not None and ask.lane.listener is not hosting.worker:
            self._lanes[ask.owner.socket].share(ask.lane, hosting.worker)
        self._serving.infer(ask, session, observation, t_ns, deadline)

    def _health(self, ask: Ask, message: Message) -> None:
        self._reply(Reply(ask, "health", self.health()))

    def _metrics_text(self, ask: Ask, message: Message) -> None:
        self._reply(Reply(ask, "metrics", {"text": self.metrics.text()}))

    def _reload(self, ask: Ask, message: Message) -> None:
        if not is_ipc(self.endpoints[ask.owner.socket]):
            raise PolicyError(
                "reloading is only done over the server's ipc:// socket, by the user it runs as",
                "forbidden",
            )
        hosting = self._serving.hosting(requests.text(message.body, "policy", ""))
        load = hosting.load
        if "checkpoint" in message.body:
            if self._reload_from is None:
                raise PolicyError("this server has no checkpoints to choose from", "forbidden")
            weak = requests.text(message.body, "weak") if "weak" in message.body else None
            load = self._reload_from(requests.text(message.body, "checkpoint"), weak)
        self._serving.reload(ask, hosting, load)

    # -- how it is ---------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Whether every policy is loaded and warm, and what is going on."""
        hostings = {} if self._engine is None else self._engine.hostings
        loading = [name for name, hosting in hostings.items() if not hosting.ready]
        ready = self._ready and not self._stopping
        detail = "ending" if self._stopping else f"loading {', '.join(loading)}"
        return {
            "ready": ready,
            "detail": "" if ready else detail,
            "server": f"robot-stack {__version__}",
            "uptime_s": (time.monotonic_ns() - self._started_ns) / 1e9,
            "sessions": len(self._sessions),
            "resident_bytes": resident_bytes(),
            "policies": {
                name: {
                    "ready": hosting.ready,
                    "generation": hosting.generation,
                    "reloading": hosting.next is not None,
                    "decoders": list(hosting.decoders),
                    "waiting": len(hosting.waiting),
                    "running": len(hosting.running),
                }
                for name, hosting in hostings.items()
            },
        }

    def _gauges(self) -> dict[tuple[str, Labels], float]:
        health = self.health()
        values: dict[tuple[str, Labels], float] = {
            ("policy_server_ready", ()): health["ready"],
            ("policy_sessions", ()): health["sessions"],
            ("process_resident_memory_bytes", ()): health["resident_bytes"],
        }
        for name, policy in health["policies"].items():
            labels = (("policy", name),)
            values["policy_ready", labels] = policy["ready"]
            values["policy_generation", labels] = policy["generation"]
            values["policy_waiting", labels] = policy["waiting"]
        return values


def _timeout_ms(following: int | None) -> int:
    if following is None:
        return POLL_MS
    left = -(-(following - time.monotonic_ns()) // 1_000_000)
    return min(max(left, 0), POLL_MS)


def _describe(metrics: Metrics) -> None:
    for name, kind, text in (
        ("policy_server_ready", "gauge", "1 once every policy is loaded and warm"),
        ("policy_ready", "gauge", "1 once the policy is loaded and warm"),
        ("policy_generation", "gauge", "grows with each reload"),
        ("policy_waiting", "gauge", "requests in the queue"),
        ("policy_sessions", "gauge", "open sessions"),
        ("policy_requests_total", "counter", "requests for chunks by outcome"),
        ("policy_faults_total", "counter", "requests refused at the door by code"),
        ("policy_unsent_replies_total", "counter", "replies whose client is gone or does not read"),
        ("policy_refused_keys_total", "counter", "handshakes with a key that is not allowed"),
        ("policy_sessions_expired_total", "counter", "sessions ended for being idle"),
        ("policy_reloads_total", "counter", "swaps to a newly loaded policy"),
        ("policy_received_bytes_total", "counter", "bytes of requests' arrays"),
        ("policy_queue_seconds", "histogram", "from reception until inference begins"),
        ("policy_inference_seconds", "histogram", "one batch"),
        ("policy_reply_seconds", "histogram", "from reception until the reply"),
        ("process_resident_memory_bytes", "gauge", "this process's memory in RAM"),
    ):
        metrics.describe(name, kind, text)
    metrics.describe("policy_batch_size", "histogram", "requests in one batch", SIZES)
