"""Serving: our policy server and client against openpi's websocket and gRPC, one observation each.

Every client sends the same observations (14 floats; 3 x 224 x 224 RGB; 4 x 480 x 640 RGB) and waits
for a chunk. Servers run in processes of their own; each checksums every byte of what it got, each
client checks the answer. Requests go out one at a time, the peers in turn, so what disturbs this
machine disturbs all of them: first one right after the other, which the bars are about, then at a
robot's rate, where each finds its processes asleep and their code out of the caches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._producers import spawn, stop
from benchmarks._serving_peers import (
    SIZES,
    GrpcPeer,
    OpenpiPeer,
    Peer,
    payloads,
    serve_grpc,
    serve_openpi,
)

__all__ = ["add_arguments", "run"]

# The native median over ipc as a share of openpi's, at most.
BARS = {"450KB": 0.35, "3.7MB": 0.15}
WARM_UP = 10
START_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=300, help="of each client and size (300)")
    parser.add_argument(
        "--rate", type=float, default=10.0, help="in the second part, requests a second (10)"
    )
    parser.add_argument(
        "--paced", type=int, default=60, help="requests in the second part, 0 leaves it out (60)"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: all"
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.epilog = "example:\n  robot-stack bench serve --requests 300 --rate 10 --sizes 450KB"


@contextmanager
def _serving(serve: Callable[..., None], *args: object) -> Iterator[Any]:
    """What a server in a process of its own says through its pipe."""
    here, there = get_context("spawn").Pipe()
    process = spawn(serve, there, *args)
    there.close()
    try:
        if not here.poll(START_S):
            raise TimeoutError(f"{serve.__name__} did not start within {START_S:g} s")
        yield here.recv()
    finally:
        stop([process])


def _peers(stack: ExitStack, places: dict[str, Any], size: str) -> dict[str, Peer]:
    from benchmarks._serving_native import NativePeer

    ipc, tcp = places["native"]
    made: dict[str, Peer] = {
        "native_ipc": NativePeer(ipc, size),
        "native_tcp": NativePeer(tcp, size),
        "openpi": OpenpiPeer(places["openpi"]),
        "grpc": GrpcPeer(places["grpc"]),
    }
    for peer in made.values():
        stack.enter_context(closing(peer))
    return made


def _measure(
    peers: dict[str, Peer], size: str, requests: int, rate: float | None = None
) -> dict[str, Any]:
    """Medians and 99th percentiles, us; the peers take turns, in an order that moves on."""
    observations = payloads(size)
    names = list(peers)
    taken: dict[str, list[float]] = {name: [] for name in names}
    due = time.monotonic()
    for i in range(WARM_UP + requests):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if rate is not None:
                due = max(due + 1 / rate / len(names), time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))
            payload = observations[(i + len(name)) % len(observations)]
            began = time.perf_counter()
            actions = peers[name].ask(payload)
            lasted = time.perf_counter() - began
            if not payload.answered_by(actions):
                raise RuntimeError(f"{name} answered another observation than asked ({size})")
            if i >= WARM_UP:
                taken[name].append(lasted * 1e6)
    result: dict[str, Any] = {}
    for name, values in taken.items():
        p50, p99 = np.percentile(values, [50, 99])
        result[f"{name}_us"], result[f"{name}_p99_us"] = round(float(p50)), round(float(p99))
    ratio = float(np.median(taken["native_ipc"]) / np.median(taken["openpi"]))
    return {**result, "ratio_openpi": round(ratio, 3)}


def measure(
    sizes: list[str], requests: int, paced: int = 0, rate: float = 10.0
) -> dict[str, dict[str, Any]]:
    """Run the benchmark; a record a size, with the second part's under ``paced``."""
    from benchmarks._serving_native import serve_native

    directory = Path(tempfile.mkdtemp(prefix="robot-stack-bench-"))
    try:
        with ExitStack() as servers:
            places = {
                "native": servers.enter_context(_serving(serve_native, directory)),
                "openpi": servers.enter_context(_serving(serve_openpi)),
                "grpc": servers.enter_context(_serving(serve_grpc)),
            }
            results = {}
            for size in sizes:
                with ExitStack() as clients:
                    peers = _peers(clients, places, size)
                    results[size] = _measure(peers, size, requests)
                    if paced:
                        results[size]["paced"] = _measure(peers, size, paced, rate)
            return results
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def failures(results: dict[str, dict[str, Any]]) -> list[str]:
    """The bars that results miss, in words."""
    return [
        f"{size}: native over ipc takes {results[size]['ratio_openpi']} of openpi, allowed is {bar}"
        for size, bar in BARS.items()
        if size in results and not results[size]["ratio_openpi"] <= bar
    ]


def _print(how: str, results: dict[str, dict[str, Any]]) -> None:
    names = ("native_ipc", "native_tcp", "openpi", "grpc")
    print(f"one observation to its chunk, {how}, us (p50 / p99):")
    print(" " * 8 + "".join(f"{name:>16}" for name in names) + "    ipc / openpi")
    for size, found in results.items():
        cells = (f"{found[f'{name}_us']} / {found[f'{name}_p99_us']}" for name in names)
        print(f"{size:8}" + "".join(f"{c:>16}" for c in cells) + f"{found['ratio_openpi']:14}")


def run(args: argparse.Namespace) -> int:
    results = measure(args.sizes, args.requests, args.paced, args.rate)
    missed = failures(results)
    if not args.json:
        _print("one after the other", results)
        if args.paced:
            _print(f"at {args.rate:g} Hz", {size: r["paced"] for size, r in results.items()})
    for text in missed:
        print(text, file=sys.stderr)
    print(json.dumps({**results, "ok": not missed}))
    return 1 if missed else 0
