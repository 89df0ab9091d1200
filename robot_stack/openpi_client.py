"""OpenpiClient: action chunks from an openpi server, asked as a PolicyClient is.

with OpenpiClient("openpi://gpu-box:8000", contract=contract) as policy:
    reply = policy.infer(PolicyObservation(t_ns, state, images))
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError, MessageError, PolicyError
from robot_stack.messages import MAX_BYTES
from robot_stack.openpi_wire import ObservationKeys, observation_keys, pack, unpack
from robot_stack.policy_client import PolicyObservation, PolicyReply, Timing

__all__ = ["SCHEME", "OpenpiClient"]

SCHEME = "openpi://"
CLOSE_S = 1.0


class _Asked(NamedTuple):
    id: int
    epoch: int
    message: dict[str, Any]
    observation_t_ns: int
    expires_ns: int


class _Answered(NamedTuple):
    id: int
    epoch: int
    reply: PolicyReply | PolicyError


class OpenpiClient:
    """One connection to one openpi server; for one thread. Making it does not connect.

    ``endpoint`` is ``openpi://HOST:PORT`` (or ``ws://``, ``wss://``). ``contract`` says what the
    policy takes and gives: openpi servers don't; our own openpi front does, and then it may be left
    out. ``keys`` says where the observation's parts go; the newest moment is sent alone, and all
    of them only to a server that sent a contract. What the wire does not carry is ignored
    (``previous_chunk``, ``consumed``, ``delay``). Errors are PolicyErrors with the codes of
    ``PolicyClient``. A connection's thread does the waiting; its stages are not told apart in the
    reply's ``timing``: received and started are ``done`` less the server's own inference time, and
    done is the arrival.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        contract: PolicyContract | None = None,
        offered: PolicyContract | None = None,
        keys: ObservationKeys | None = None,
        prompt: str | None = None,
        token: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.endpoint = endpoint
        self.offered = offered
        self.keys = keys or observation_keys("openpi")
        self.prompt = prompt
        self.timeout_s = timeout_s
        self.metadata: dict[Any, Any] = {}
        self.generation = 0
        self.offset_ns: int | None = None
        self._uri = (
            "ws://" + endpoint.removeprefix(SCHEME) if endpoint.startswith(SCHEME) else endpoint
        )
        self._token = token
        self._given = contract
        self._contract: PolicyContract | None = None
        self._sends_all = False
        self._resettable = False
        self._epoch = 0
        self._next_id = 1
        self._connection: Any = None
        self._closing = contextlib.ExitStack()
        self._thread: threading.Thread | None = None
        self._orders: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answered] = queue.SimpleQueue()
        self._pending: dict[int, int] = {}  # request number -> when it is given up

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
        """The server's contract where it sends one, else the one given."""
        if self._contract is None:
            self._connect()
        assert self._contract is not None
        return self._contract

    # -- the session -------------------------------------------------------------------------

    def open(self) -> PolicyContract:
        """Begin a session: a connection of its own. PolicyError ``contract_mismatch`` when what is
        offered differs from the contract."""
        if self._connection is not None and self._epoch:
            self.close()
        contract = self.contract
        if self.offered is not None:
            found = contract.differences(self.offered)
            if found:
                self.close()
                raise PolicyError(
                    f"the policy at {self.endpoint} does not fit this robot: {'; '.join(found)}",
                    "contract_mismatch",
                )
        self._epoch += 1
        return contract

    def reset(self) -> None:
        """A new episode: chunks in flight will never arrive. The server is told where it
        understands that (a contract's sender does); others keep no state but the connection's."""
        self._require_connection()
        self._epoch += 1
        self._pending.clear()
        if self._resettable:
            self._order({"endpoint": "reset"}, -1, 0)

    def close(self) -> None:
        """End the connection."""
        if self._connection is None:
            return
        self._orders.put(None)
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(2)  # wakes the thread if it waits for an answer
        assert self._thread is not None
        self._thread.join(self.timeout_s)
        self._disconnect()

    def _disconnect(self) -> None:
        self._closing.close()
        self._connection = self._thread = self._contract = None
        self._orders, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        self._pending.clear()
        self._epoch = 0

    def _connect(self) -> None:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else None
        try:
            attempt = connect(
                self._uri,
                compression=None,
                max_size=MAX_BYTES,
                additional_headers=headers,
                open_timeout=self.timeout_s,
                close_timeout=CLOSE_S,
                ping_interval=None,  # openpi answers none while it computes
                proxy=None,
            )
            self._connection = self._closing.enter_context(attempt)
            first = self._connection.recv(self.timeout_s)
            if isinstance(first, str):
                raise PolicyError(f"{self.endpoint}: {first}", "refused")
            metadata = unpack(first)
            self.metadata = metadata if isinstance(metadata, dict) else {}
            self._contract = self._agreed()
        except PolicyError:
            self._disconnect()
            raise
        except (OSError, TimeoutError, WebSocketException, MessageError) as error:
            self._disconnect()
            raise PolicyError(
                f"no openpi server answers at {self._uri}: {error}", "unreachable"
            ) from error
        self._thread = threading.Thread(
            target=_converse,
            args=(self._connection, self._orders, self._answers, len(self._contract.action)),
            name="openpi-client",
            daemon=True,
        )
        self._thread.start()

    def _agreed(self) -> PolicyContract:
        sent = self.metadata.get("contract")
        if isinstance(sent, dict):
            try:
                contract = PolicyContract.from_json(sent, f"contract of {self.endpoint}")
            except ConfigError as error:
                raise PolicyError(str(error), "contract_mismatch") from error
            self._sends_all = self._resettable = True
            self.generation = int(self.metadata.get("generation", 0))
            return contract
        if self._given is None:
            raise PolicyError(
                f"{self.endpoint} does not say what its policy takes and gives (openpi servers "
                "don't): give a contract",
                "contract_mismatch",
            )
        return self._given

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
        """Ask for a chunk without waiting; returns the request's number. A request that has not
        been sent yet is superseded by a newer one, and dropped after ``deadline_s``."""
        self._require_connection()
        moments = slice(None) if self._sends_all else -1
        state = np.asarray(observation.state, np.float32)[moments]
        images = {camera: image[moments] for camera, image in observation.images.items()}
        message = self.keys.write(state, images)
        if self.prompt is not None:
            message["prompt"] = self.prompt
        lasts = self.timeout_s if deadline_s is None else deadline_s
        number = self._order(message, int(observation.t_ns[-1]), lasts)
        self._pending[number] = time.monotonic_ns() + int(self.timeout_s * 1e9)
        return number

    def poll(self, timeout_s: float = 0.0) -> PolicyReply | None:
        """The next chunk that has arrived, waiting for it at most ``timeout_s``; PolicyError as
        ``PolicyClient.poll``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0.0001))
            except queue.Empty:
                self._give_up_late()
                if time.monotonic() >= deadline:
                    return None
                continue
            if answer.id < 0:  # the connection itself failed
                self.close()
            elif answer.epoch != self._epoch or self._pending.pop(answer.id, None) is None:
                continue
            if isinstance(answer.reply, PolicyReply):
                return answer.reply
            if answer.reply.code != "superseded":
                raise answer.reply

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
        number = self.request(observation, deadline_s=deadline_s)
        while True:
            reply = self.poll(self.timeout_s)
            if reply is None:
                raise self._timeout()
            if reply.id == number:
                return reply

    def _order(self, message: dict[str, Any], t_ns: int, lasts_s: float) -> int:
        number, self._next_id = self._next_id, self._next_id + 1
        expires = time.monotonic_ns() + int(lasts_s * 1e9)
        self._orders.put(_Asked(number, self._epoch, message, t_ns, expires))
        return number

    def _give_up_late(self) -> None:
        now = time.monotonic_ns()
        late = [number for number, until in self._pending.items() if now > until]
        for number in late:
            del self._pending[number]
        if late:
            raise self._timeout()

    def _timeout(self) -> PolicyError:
        return PolicyError(f"{self.endpoint} did not answer within {self.timeout_s:g} s", "timeout")

    def _require_connection(self) -> None:
        if self._connection is None or not self._epoch:
            raise PolicyError("no session is open: call open() first", "unknown_session")


def _converse(
    connection: Any,
    orders: queue.SimpleQueue[_Asked | None],
    answers: queue.SimpleQueue[_Answered],
    width: int,
) -> None:
    """The connection's thread: one request after the other, the newest of those that wait."""
    from websockets.exceptions import WebSocketException

    chunk = 0
    try:
        while (asked := orders.get()) is not None:
            while asked.observation_t_ns >= 0 and not orders.empty():
                newer = orders.get()
                answers.put(_Answered(asked.id, asked.epoch, PolicyError("newer", "superseded")))
                if newer is None:
                    return
                asked = newer
            sent = time.monotonic_ns()
            if asked.observation_t_ns >= 0 and sent > asked.expires_ns:
                text = "its deadline passed before it could be sent"
                answers.put(_Answered(asked.id, asked.epoch, PolicyError(text, "expired")))
                continue
            try:
                connection.send(pack(asked.message))
                received = connection.recv()
            except MessageError as error:
                refusal = PolicyError(str(error), "bad_observation")
                answers.put(_Answered(asked.id, asked.epoch, refusal))
                continue
            arrived = time.monotonic_ns()
            if asked.observation_t_ns < 0:
                continue  # a reset: its answer says nothing
            reply = _reply(asked, received, sent, arrived, chunk, width)
            chunk += isinstance(reply, PolicyReply)
            answers.put(_Answered(asked.id, asked.epoch, reply))
    except (OSError, EOFError, WebSocketException) as error:
        lost = PolicyError(
            f"the connection to the openpi server is lost: {error}", "unknown_session"
        )
        answers.put(_Answered(-1, 0, lost))
    finally:
        connection.close()


def _reply(
    asked: _Asked, received: str | bytes, sent: int, arrived: int, chunk: int, width: int
) -> PolicyReply | PolicyError:
    if isinstance(received, str):
        last = received.strip().rpartition("\n")[2]  # of a traceback
        return PolicyError(f"the openpi server failed: {last}", "internal")
    try:
        body = unpack(received)
    except MessageError as error:
        return PolicyError(str(error), "internal")
    actions: Any = body.get("actions") if isinstance(body, dict) else body
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind not in "iuf":
        return PolicyError("the openpi server answered no actions (H, D)", "internal")
    if not len(actions) or actions.shape[1] != width:
        text = f"the openpi server answered actions of shape {actions.shape}, not (H, {width})"
        return PolicyError(text, "contract_mismatch")
    rows: NDArray[np.float64] = actions.astype(np.float64)
    if not np.isfinite(rows).all():
        return PolicyError("the openpi server answered NaN or infinity", "internal")
    timing = body.get("server_timing") if isinstance(body, dict) else None
    infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
    started = sent
    if isinstance(infer_ms, (int, float)) and 0 <= infer_ms * 1e6 <= arrived - sent:
        started = arrived - int(infer_ms * 1e6)
    return PolicyReply(
        id=asked.id,
        chunk_id=chunk,
        actions=rows,
        observation_t_ns=asked.observation_t_ns,
        generation=0,
        timing=Timing(sent, started, started, arrived, arrived, arrived),
        offset_ns=0,
    )
