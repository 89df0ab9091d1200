"""What `bench serve` measures against: openpi's websocket server and gRPC, each in a process.

The openpi server follows Physical-Intelligence/openpi ``serving/websocket_policy_server.py``:
``websockets.asyncio.server`` without compression or size limit, metadata at connect, then one
msgpack-numpy request and reply after the other, the policy called on the event loop. The gRPC peer
is a unary call of ``grpc.server`` with generic handlers over raw bytes, so that it pays for no
protobuf: a JSON header and the arrays behind one another.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHUNK",
    "DIM",
    "SIZES",
    "GrpcPeer",
    "OpenpiPeer",
    "Payload",
    "Peer",
    "answer",
    "checksum",
    "payloads",
    "serve_grpc",
    "serve_openpi",
]

DIM = 14
CHUNK = 16  # rows of the answered chunk
# Name -> cameras, height, width. 3 x 224 x 224 x 3 is what openpi's policies take, 4 x 480 x 640 x
# 3 what ALOHA's cameras give.
SIZES = {"small": (0, 0, 0), "450KB": (3, 224, 224), "3.7MB": (4, 480, 640)}
VARIANTS = 4
GRPC_METHOD = ("robot_stack.Benchmark", "Infer")
GRPC_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """A number of 64 bits in which every byte of every array counts, and their order.

    As cheap as reading them: the server must read all, and nothing else is to be measured.
    """
    total = 0
    for array in arrays:
        words = np.ascontiguousarray(array).reshape(-1).view(np.uint64)
        total = (total * 1_000_003 + int(np.add.reduce(words))) % 2**64
    return total


def answer(arrays: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """The chunk (CHUNK, DIM) that every server answers: the checksum in the first row, 16 bits a
    value, which even float32 holds exactly."""
    actions = np.zeros((CHUNK, DIM))
    actions[0, :4] = np.array([checksum(arrays)], np.uint64).view(np.uint16)
    return actions


@dataclass(frozen=True)
class Payload:
    """One observation: state float32 (14,), images uint8 (H, W, 3); and the right answer to it."""

    state: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    checksum: int

    @property
    def bytes(self) -> int:
        return self.state.nbytes + sum(image.nbytes for image in self.images.values())

    def answered_by(self, actions: NDArray[Any]) -> bool:
        """Whether ``actions`` is the answer to this observation."""
        found = actions[0, :4].astype(np.uint16).view(np.uint64)[0]
        return actions.shape == (CHUNK, DIM) and int(found) == self.checksum


def payloads(size: str) -> list[Payload]:
    """Some observations of a size, in turn: no buffer is sent twice running, as with cameras."""
    cameras, height, width = SIZES[size]
    stream = np.random.default_rng(len(size))
    made = []
    for _ in range(VARIANTS):
        state = stream.standard_normal(DIM).astype(np.float32)
        images = {
            f"cam_{i}": stream.integers(0, 256, (height, width, 3), np.uint8)
            for i in range(cameras)
        }
        made.append(Payload(state, images, checksum([state, *images.values()])))
    return made


class Peer(Protocol):
    """A client of one of the servers."""

    def ask(self, payload: Payload) -> NDArray[Any]:
        """Send an observation and wait for its chunk (CHUNK, DIM)."""

    def close(self) -> None: ...


# -- openpi --------------------------------------------------------------------------------------


def _openpi_infer(observation: dict[str, Any]) -> dict[str, Any]:
    state = observation.pop("observation/state")
    return {"actions": answer([state, *(observation[key] for key in sorted(observation))])}


def serve_openpi(pipe: Connection) -> None:
    """Serve until SIGTERM; sends the port through ``pipe``."""
    from openpi_client import msgpack_numpy
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    async def handle(connection: ServerConnection) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({"action_horizon": CHUNK}))
        total: float | None = None
        while True:
            try:
                began = time.monotonic()
                observation = msgpack_numpy.unpackb(await connection.recv())
                called = time.monotonic()
                result = _openpi_infer(observation)
                result["server_timing"] = {"infer_ms": (time.monotonic() - called) * 1e3}
                if total is not None:
                    result["server_timing"]["prev_total_ms"] = total * 1e3
                await connection.send(packer.pack(result))
                total = time.monotonic() - began
            except ConnectionClosed:
                return

    async def main() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await ended.wait()

    asyncio.run(main())


class OpenpiPeer:
    """The unmodified ``openpi-client`` from PyPI."""

    def __init__(self, port: int) -> None:
        from openpi_client.websocket_client_policy import WebsocketClientPolicy

        self._client = WebsocketClientPolicy("127.0.0.1", port)

    def ask(self, payload: Payload) -> NDArray[Any]:
        observation: dict[str, Any] = {"observation/state": payload.state}
        for name, image in payload.images.items():
            observation[f"observation/images/{name}"] = image
        actions: NDArray[Any] = self._client.infer(observation)["actions"]
        return actions

    def close(self) -> None:
        self._client._ws.close()  # it offers no other way


# -- gRPC ----------------------------------------------------------------------------------------


def _pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    header = json.dumps([[n, a.dtype.str, a.shape] for n, a in arrays.items()]).encode()
    header += b" " * (-(4 + len(header)) % 8)  # arrays begin where the processor likes it
    body = [
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values()
    ]
    return b"".join([len(header).to_bytes(4, "little"), header, *body])


def _unpack(data: bytes) -> dict[str, NDArray[Any]]:
    at = 4 + int.from_bytes(data[:4], "little")
    arrays = {}
    for name, dtype, shape in json.loads(data[4:at]):
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += arrays[name].nbytes
    return arrays


def _grpc_infer(request: bytes, _: Any) -> bytes:
    return _pack({"actions": answer(_unpack(request).values())})


def serve_grpc(pipe: Connection) -> None:
    """Serve until SIGTERM; sends the port through ``pipe``."""
    import grpc

    service, method = GRPC_METHOD
    server = grpc.server(ThreadPoolExecutor(1), options=GRPC_OPTIONS)
    handler = grpc.unary_unary_rpc_method_handler(_grpc_infer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    server.start()
    pipe.send(port)
    server.wait_for_termination()


class GrpcPeer:
    """A unary call over one channel."""

    def __init__(self, port: int) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=GRPC_OPTIONS)
        self._call: Callable[..., bytes] = self._channel.unary_unary("/" + "/".join(GRPC_METHOD))

    def ask(self, payload: Payload) -> NDArray[Any]:
        reply = self._call(_pack({"state": payload.state, **payload.images}), timeout=30.0)
        return _unpack(reply)["actions"]

    def close(self) -> None:
        self._channel.close()
