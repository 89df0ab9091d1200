"""Our side of `bench serve`: the real policy server and client, around a policy that checksums.

The peers' policies are plain functions here, so ours is called by a worker's thread as it is:
without the decoder and torch, whose cost `bench infer` measures.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._serving_peers import CHUNK, DIM, SIZES, Payload, answer
from policies.hosted import Hosted
from policies.interfaces import Array, Need
from robot_stack.contract import CameraInput, Feature, PolicyContract
from robot_stack.policy_client import PolicyClient, PolicyObservation
from server.policy.server import PolicyServer
from server.policy.worker import (
    Batch,
    Chunk,
    Decoded,
    Observation,
    Open,
    Opened,
    Ready,
    ThreadWorker,
)

__all__ = ["ChecksumPolicy", "ChecksumWorker", "NativePeer", "serve_native"]

DT_NS = 20_000_000


class ChecksumPolicy:
    """A policy whose chunk holds the checksum of the observation it was asked about."""

    gives = frozenset({Need.SAMPLES})
    device = torch.device("cpu")

    def __init__(self, size: str) -> None:
        cameras, height, width = SIZES[size]
        joints = tuple(Feature(f"bench/{i}", "rad") for i in range(DIM))
        self.contract = PolicyContract(
            name=size,
            embodiment="bench",
            task="",
            state=joints,
            action=joints,
            cameras=tuple(CameraInput(f"cam_{i}", height, width) for i in range(cameras)),
            control_dt_ns=DT_NS,
            observations=1,
            horizon=CHUNK,
            first_action=0,
            execute=CHUNK,
        )

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The answers (B, CHUNK, DIM)."""
        seen = [state.numpy(), *(images[c.name].numpy() for c in self.contract.cameras)]
        rows = [answer([array[b] for array in seen]) for b in range(len(state))]
        return torch.from_numpy(np.asarray(rows, np.float32))

    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        return condition

    def normalized(self, actions: Array) -> Array:
        return actions


class ChecksumWorker(ThreadWorker):
    """A worker whose thread answers each observation with its checksum."""

    def _run(self) -> None:
        contract = self._load().contract
        self._answer(Ready(contract, ("receding_horizon",)))
        chunks = itertools.count()

        def chunk(observation: Observation) -> Chunk:
            images = (observation.images[camera.name] for camera in contract.cameras)
            return Chunk(next(chunks), answer([observation.state, *images]))

        while (order := self._next()) is not None:
            if isinstance(order, Open):
                self._answer(Opened(order.session))
            elif isinstance(order, Batch):
                started = time.monotonic_ns()
                results = tuple(chunk(observation) for observation in order.observations)
                self._answer(Decoded(results, started, time.monotonic_ns()))
            del order


def serve_native(pipe: Connection, directory: Path) -> None:
    """Serve every size over ipc and tcp until SIGTERM; sends both endpoints through ``pipe``."""
    server = PolicyServer(
        {size: partial(_host, size) for size in SIZES},
        [f"ipc://{directory}/policy.ipc", "tcp://127.0.0.1:*"],
        make_worker=ChecksumWorker,
    )
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    pipe.send(server.endpoints)
    server.run()


def _host(size: str) -> Hosted:
    return Hosted(ChecksumPolicy(size))


class NativePeer:
    """``PolicyClient`` at one endpoint."""

    def __init__(self, endpoint: str, size: str) -> None:
        self._client = PolicyClient(endpoint, policy=size, timeout_s=30.0)
        self._client.wait_ready(60.0)
        self._client.open()

    def ask(self, payload: Payload) -> NDArray[Any]:
        observation = PolicyObservation(
            np.array([time.monotonic_ns()]),
            payload.state[None],
            {name: image[None] for name, image in payload.images.items()},
        )
        return self._client.infer(observation).actions

    def close(self) -> None:
        self._client.close()
