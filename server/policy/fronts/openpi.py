"""openpi's websocket in front of a policy server: the unmodified ``openpi-client`` gets our chunks.

A client gets metadata at connect, then an answer to each observation, msgpack with numpy arrays;
``/healthz`` says whether the policies are ready. RoboArena's clients say ``endpoint`` (``infer`` or
``reset``) and ``session_id``, and are answered the bare actions that they execute. The front is a
client of the policy server, in a process of its own: it holds no model, and each connection's
waiting is done in a thread, so that its event loop always answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import ipaddress
import logging
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from robot_stack import __version__
from robot_stack.contract import PolicyContract
from robot_stack.errors import MessageError, PolicyError
from robot_stack.messages import MAX_BYTES
from robot_stack.openpi_wire import ObservationKeys, observation_keys, pack, unpack
from robot_stack.policy_client import PolicyClient, PolicyObservation

__all__ = ["FrontOptions", "OpenpiFront"]

MAX_CONNECTIONS = 64
MAX_SESSIONS = 8  # of one connection, by session_id
MAX_SESSION_ID = 256
ANSWER_S = 30.0
HEALTH_S = 2.0
SLACK = 1.5  # observations up to so many control periods apart follow each other
RESET_ANSWER = "reset successful"  # RoboArena's clients print it

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """Where to listen and what to serve.

    ``endpoint`` is the policy server's. ``layout`` and ``renamed`` say where observations stand in
    a message (``openpi_wire``). Addresses other than this computer's need ``token`` and a
    certificate (PolicyError ``keys``).
    """

    endpoint: str
    host: str = "127.0.0.1"
    port: int = 8000
    policy: str = ""
    decoder: str = "receding_horizon"
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "openpi"
    renamed: Mapping[str, str] = field(default_factory=dict)
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        observation_keys(self.layout)
        if self.token == "":
            raise PolicyError("the token for openpi clients is empty", "keys")
        if not _loopback(self.host) and (self.token is None or self.certificate is None):
            raise PolicyError(
                f"{self.host} is open to other computers, and anybody there could use the policy: "
                "give a token and a certificate (--openpi-token-file, --openpi-cert, "
                "--openpi-key), or listen at 127.0.0.1",
                "keys",
            )

    @property
    def keys(self) -> ObservationKeys:
        return observation_keys(self.layout, self.renamed)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _Episode:
    """One robot's session with the policy, and the moments that it has seen. For one thread."""

    def __init__(self, options: FrontOptions) -> None:
        self._keys = options.keys
        self._client = PolicyClient(
            options.endpoint,
            policy=options.policy,
            decoder=options.decoder,
            options=options.options,
            timeout_s=ANSWER_S,
        )
        self._chunk = -1
        self._seen: deque[tuple[int, NDArray[np.float32], dict[str, NDArray[np.uint8]]]] = deque()

    def open(self) -> PolicyContract:
        contract = self._client.open()
        self._seen = deque(maxlen=contract.observations)
        self._chunk = -1
        return contract

    @property
    def contract(self) -> PolicyContract:
        return self._client.contract

    @property
    def generation(self) -> int:
        return self._client.generation

    def reset(self) -> None:
        self._client.reset()
        self._seen.clear()
        self._chunk = -1

    def close(self) -> None:
        self._client.close()

    def infer(self, message: Mapping[Any, Any], arrived_ns: int) -> tuple[NDArray[Any], float]:
        """The chunk (H, D) for an observation, and the inference time in ms."""
        observation = self._observation(message, arrived_ns)
        consumed = message.get("consumed", self.contract.execute)
        if type(consumed) is not int:
            raise PolicyError("consumed must be a number of rows", "bad_observation")
        try:
            reply = self._ask(observation, consumed)
        except PolicyError as error:
            if error.code not in ("unknown_session", "unreachable"):
                raise
            self.open()  # the policy server was started again, or nobody asked for minutes
            observation = self._observation(message, arrived_ns)
            reply = self._ask(observation, 0)
        self._chunk = reply.chunk_id
        newest = {camera: frames[-1] for camera, frames in observation.images.items()}
        self._seen.append((arrived_ns, observation.state[-1], newest))
        return reply.actions, (reply.timing.done - reply.timing.started) / 1e6

    def _ask(self, observation: PolicyObservation, consumed: int) -> Any:
        return self._client.infer(
            observation,
            previous_chunk=self._chunk,
            consumed=consumed if self._chunk >= 0 else 0,
        )

    def _observation(self, message: Mapping[Any, Any], arrived_ns: int) -> PolicyObservation:
        """The newest To moments. What a client sent at its last steps counts where it is asked at
        every step; else the only moment known stands for those before it."""
        contract = self.contract
        state, images = self._keys.read(message, contract)
        moments, dt = contract.observations, contract.control_dt_ns
        if len(state) < moments:
            seen = list(self._seen)[1 - moments :]
            if seen and arrived_ns - seen[-1][0] > SLACK * dt:
                seen = []
            seen.append((arrived_ns, state[0], {c: image[0] for c, image in images.items()}))
            filled = [seen[0]] * (moments - len(seen)) + seen
            state = np.stack([values for _, values, _ in filled])
            images = {c: np.stack([frames[c] for _, _, frames in filled]) for c in images}
        t_ns = arrived_ns - dt * np.arange(moments - 1, -1, -1, dtype=np.int64)
        return PolicyObservation(np.maximum(t_ns, 0), state, images)


class OpenpiFront:
    """The front's server. ``run`` serves until ``stop``, and calls ``started`` with the port."""

    def __init__(self, options: FrontOptions) -> None:
        self.options = options
        self._tls: ssl.SSLContext | None = None
        if options.certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                self._tls.load_cert_chain(options.certificate, options.key)
            except (OSError, ssl.SSLError) as error:
                raise PolicyError(
                    f"{options.certificate} and {options.key} are no certificate and key: {error}",
                    "keys",
                ) from error
        self._connections = 0
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, started: Callable[[int], None]) -> None:
        """Serve; PolicyError when the address is taken."""
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            server: Server = await serve(
                self._handle,
                self.options.host,
                self.options.port,
                process_request=self._http,
                ssl=self._tls,
                compression=None,
                max_size=self.options.max_bytes,
                max_queue=2,
                server_header=None,
            )
        except OSError as error:
            raise PolicyError(
                f"cannot listen at {self.options.host}:{self.options.port}: {error}", "bad_endpoint"
            ) from error
        async with server:
            started(int(next(iter(server.sockets)).getsockname()[1]))
            await self._ended.wait()

    def stop(self) -> None:
        """End ``run``; any thread or signal handler may call it."""
        if self._loop is not None and self._ended is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._ended.set)

    # -- http --------------------------------------------------------------------------------

    async def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            ready, text = await asyncio.to_thread(self._health)
            status = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, text + "\n")
        if not self._admitted(request):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "give the server's token as api_key\n"
            )
        if self._connections >= MAX_CONNECTIONS:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    def _admitted(self, request: Request) -> bool:
        if self.options.token is None:
            return True
        sent = request.headers.get("Authorization", "")
        kind, _, token = sent.partition(" ")
        return kind in ("Api-Key", "Bearer") and hmac.compare_digest(
            token.encode(), self.options.token.encode()
        )

    def _health(self) -> tuple[bool, str]:
        client = PolicyClient(self.options.endpoint, timeout_s=HEALTH_S)
        try:
            health = client.ask("health")
        except PolicyError as error:
            return False, str(error)
        finally:
            client.close()
        return bool(health["ready"]), "OK" if health["ready"] else str(health["detail"])

    # -- the conversation --------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        self._connections += 1
        episodes: OrderedDict[str, _Episode] = OrderedDict()
        thread = ThreadPoolExecutor(1, "openpi-front")  # sockets of the sessions stay in one thread
        loop = asyncio.get_running_loop()
        try:
            await connection.send(await loop.run_in_executor(thread, self._welcome, episodes))
            while True:
                data = await connection.recv()
                arrived = time.monotonic_ns()
                answer = await loop.run_in_executor(thread, self._answer, episodes, data, arrived)
                await connection.send(answer)
        except ConnectionClosed:
            pass
        except PolicyError as error:  # at the welcome: there is nothing to speak of
            log.warning("openpi client %s: %s", connection.remote_address, error)
            with contextlib.suppress(ConnectionClosed):
                await connection.send(str(error))
            await connection.close(1011, "no policy")
        finally:
            self._connections -= 1
            thread.submit(_close, episodes)
            thread.shutdown(wait=False)

    def _welcome(self, episodes: OrderedDict[str, _Episode]) -> bytes:
        """The metadata, in RoboArena's terms where its layout is spoken."""
        episode = self._episode(episodes, "")
        contract = episode.contract
        if self.options.layout == "droid":
            names = [self.options.keys.image(camera.name) for camera in contract.cameras]
            sizes = {(camera.height, camera.width) for camera in contract.cameras}
            return pack(
                {
                    "image_resolution": next(iter(sizes)) if len(sizes) == 1 else None,
                    "needs_wrist_camera": any("wrist" in name for name in names),
                    "n_external_cameras": len(
                        {n.rpartition("_")[0] for n in names if "exterior" in n}
                    ),
                    "needs_stereo_camera": any(name.endswith("_right") for name in names),
                    "needs_session_id": False,
                    "action_space": contract.mode,
                }
            )
        return pack(
            {
                "server": f"robot-stack {__version__}",
                "policy": contract.name,
                "observation_keys": self.options.keys.names(contract),
                "action_horizon": contract.rows,
                "action_dim": len(contract.action),
                "control_hz": 1e9 / contract.control_dt_ns,
                "contract": contract.to_json(),
                "generation": episode.generation,
            }
        )

    def _episode(self, episodes: OrderedDict[str, _Episode], session: str) -> _Episode:
        """The episode of a session id; the one asked the longest ago makes room."""
        if session not in episodes:
            while len(episodes) >= MAX_SESSIONS:
                episodes.popitem(last=False)[1].close()
            episode = _Episode(self.options)
            try:
                episode.open()
            except PolicyError:
                episode.close()
                raise
            episodes[session] = episode
        episodes.move_to_end(session)
        return episodes[session]

    def _answer(
        self, episodes: OrderedDict[str, _Episode], data: str | bytes, arrived_ns: int
    ) -> str | bytes:
        """What goes back: bytes, or text that says what was wrong (as openpi's client expects)."""
        began = time.monotonic()
        try:
            if isinstance(data, str):
                raise MessageError("observations come as msgpack, not as text")
            message = unpack(data, max_bytes=self.options.max_bytes)
            if not isinstance(message, dict):
                raise MessageError("an observation is a map")
            arena = "endpoint" in message
            what = message.get("endpoint", "infer")
            if what not in ("infer", "reset"):
                raise PolicyError(
                    f"endpoint {what!r:.60} is neither infer nor reset", "bad_request"
                )
            episode = self._episode(episodes, _session_id(message))
            if what == "reset":
                episode.reset()
                return RESET_ANSWER
            actions, infer_ms = episode.infer(message, arrived_ns)
            if arena:
                return pack(actions[: episode.contract.execute])
            timing = {"infer_ms": infer_ms, "total_ms": (time.monotonic() - began) * 1e3}
            return pack({"actions": actions, "server_timing": timing})
        except (PolicyError, MessageError) as error:
            return f"{getattr(error, 'code', 'bad_message')}: {error}"
        except Exception as error:
            log.exception("an openpi client's request")
            return f"internal: {error!r}"


def _session_id(message: Mapping[Any, Any]) -> str:
    """RoboArena's session id: text, or an array with one text in it."""
    given = message.get("session_id", "")
    if isinstance(given, (np.ndarray, list, tuple)) and len(given) == 1:
        given = given[0]
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    if not isinstance(given, (str, int)) or len(str(given)) > MAX_SESSION_ID:
        raise PolicyError(f"session_id is a text of up to {MAX_SESSION_ID}", "bad_request")
    return str(given)


def _close(episodes: OrderedDict[str, _Episode]) -> None:
    for episode in episodes.values():
        episode.close()
    episodes.clear()
