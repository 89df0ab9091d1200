"""A policy of two lines of arithmetic behind a real policy server, for tests of the server.

Row i of a chunk is the newest state plus i, so that a reply shows which request it answers. The
state's first two values tell the policy how to behave: how many seconds to take, and 1 to raise,
2 to answer NaN.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from policies.hosted import Hosted
from policies.interfaces import Array, Need
from robot_stack.contract import CameraInput, Feature, PolicyContract
from server.policy.keys import ServerKeys
from server.policy.server import PolicyServer
from server.policy.worker import Loader

TAKES_S, FAILS = 0, 1
RAISE, NAN = 1.0, 2.0
HORIZON, OBSERVATIONS = 8, 2


def contract(values: int = 6, pixels: int = 0, name: str = "analytic") -> PolicyContract:
    features = tuple(Feature(f"arm/{i}", "rad") for i in range(values))
    cameras = (CameraInput("cam", pixels, pixels),) if pixels else ()
    return PolicyContract(
        name=name,
        embodiment="test",
        task="count",
        state=features,
        action=features,
        cameras=cameras,
        control_dt_ns=20_000_000,
        observations=OBSERVATIONS,
        horizon=HORIZON,
        first_action=OBSERVATIONS - 1,
        execute=4,
    )


class Analytic:
    """``offset`` is added to every action: which weights answered."""

    gives = frozenset({Need.SAMPLES})
    device = torch.device("cpu")

    def __init__(
        self, contract: PolicyContract, offset: float = 0.0, sampled: Path | None = None
    ) -> None:
        self.contract = contract
        self.offset = offset
        self.sampled = sampled

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The newest state; its last value is replaced by the images' sum where there are any."""
        condition = state[:, -1].clone()
        for frames in images.values():
            condition[:, -1] = frames.flatten(1).sum(1, dtype=torch.int64)
        return condition

    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        if self.sampled is not None:
            self.sampled.touch()
        time.sleep(float(condition[:, TAKES_S].sum()))
        if (condition[:, FAILS] == RAISE).any():
            raise OSError("the GPU fell off the bus")
        rows = torch.arange(self.contract.horizon, dtype=torch.float32) - self.contract.first_action
        chunks = condition[:, None, :] + rows[None, :, None] + self.offset
        chunks[condition[:, FAILS] == NAN] = torch.nan
        return chunks

    def normalized(self, actions: Array) -> Array:
        return actions


def loader(
    name: str, *, values: int, pixels: int, offset_file: Path | None, sampled: Path | None
) -> Loader:
    """Reads the offset anew at each (re)load; the file may also say ``wait FILE`` (until there is
    one), ``broken``, or ``wider`` or ``longer``: policies of other interfaces."""

    def load() -> Hosted:
        text = offset_file.read_text().split() if offset_file is not None else ["0"]
        if text[0] == "broken":
            raise ValueError("no such weights")
        if text[0] == "wait":
            while not Path(text[1]).exists():
                time.sleep(0.01)
            text = text[2:]
        promised = contract(values + (text[0] == "wider"), pixels, name)
        if text[0] == "longer":
            promised = dataclasses.replace(promised, horizon=HORIZON + 1)
        offset = 0.0 if text[0] in ("wider", "longer") else float(text[0])
        return Hosted(Analytic(promised, offset, sampled))

    return load


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", action="append", required=True)
    parser.add_argument("--name", action="append", default=[])
    parser.add_argument("--values", type=int, default=6)
    parser.add_argument("--pixels", type=int, default=0)
    parser.add_argument("--offset-file", type=Path)
    parser.add_argument("--sampled", type=Path, help="touched when the policy has been run")
    parser.add_argument("--keys")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--idle-s", type=float, default=300.0)
    parser.add_argument("--max-bytes", type=int, default=1 << 20)
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--bound", type=Path, help="where to write the endpoints as bound")
    args = parser.parse_args(argv)
    server = PolicyServer(
        {
            name: loader(
                name,
                values=args.values,
                pixels=args.pixels,
                offset_file=args.offset_file,
                sampled=args.sampled,
            )
            for name in args.name or ["analytic"]
        },
        args.bind,
        keys=ServerKeys.read(args.keys) if args.keys else None,
        batch=args.batch,
        sessions=args.sessions,
        idle_s=args.idle_s,
        max_bytes=args.max_bytes,
        metrics_port=args.metrics_port,
    )
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    if args.bound:
        part = args.bound.with_suffix(".part")
        part.write_text("\n".join([*server.endpoints, server.metrics_page]))
        part.replace(args.bound)
    server.run()


if __name__ == "__main__":
    main()
