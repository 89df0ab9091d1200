"""A policy that moves one joint to a place at an even speed, behind a real policy server.

The joint is the first of its embodiment: the left waist of an ALOHA, joint 1 of an FR3.

``--takes FILE`` holds the seconds that each inference takes, read anew every time. ``--leap RAD``
puts every row that far from where the waist is: too far to be followed. ``--begin JSON`` is where
its demonstrations are said to have begun.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from policies.hosted import Hosted
from policies.interfaces import Array, Need
from robot_stack.contract import Feature, PolicyContract
from server.policy.server import PolicyServer

VX300S = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ROBOTS = {
    "aloha_vx300s": {"follower_left": VX300S, "follower_right": VX300S},
    "fr3": {"arm": tuple(f"joint{i}" for i in range(1, 8))},
}
HORIZON, OBSERVATIONS, EXECUTE = 25, 2, 10
DT_S = 0.02
SPEED = 0.3  # rad/s
WAIST = 0.6  # where the joint goes


def contract(embodiment: str, unit: str, start: tuple[float, ...]) -> PolicyContract:
    features = tuple(
        Feature(f"{robot}/{joint}", "fraction" if joint == "gripper" else unit)
        for robot, joints in ROBOTS[embodiment].items()
        for joint in joints
    )
    return PolicyContract(
        name="reach",
        embodiment=embodiment,
        task="reach",
        state=features,
        action=features,
        cameras=(),
        control_dt_ns=round(DT_S * 1e9),
        observations=OBSERVATIONS,
        horizon=HORIZON,
        first_action=OBSERVATIONS - 1,
        execute=EXECUTE,
        start=start,
    )


class Reach:
    """Every other joint stays where the observation shows it."""

    gives = frozenset({Need.SAMPLES})
    device = torch.device("cpu")

    def __init__(self, contract: PolicyContract, takes: Path, leap: float) -> None:
        self.contract = contract
        self.takes = takes
        self.leap = leap

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return state[:, -1].clone()

    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        time.sleep(float(self.takes.read_text()))
        rows = torch.arange(HORIZON, dtype=torch.float32) - self.contract.first_action
        chunks = condition[:, None, :].repeat(1, HORIZON, 1)
        way = WAIST - condition[:, :1]
        chunks[:, :, 0] += torch.sign(way) * torch.minimum(way.abs(), SPEED * DT_S * rows[None])
        chunks[:, :, 0] += self.leap
        return chunks

    def normalized(self, actions: Array) -> Array:
        return actions


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", required=True)
    parser.add_argument("--takes", type=Path, required=True)
    parser.add_argument("--embodiment", default="aloha_vx300s", choices=ROBOTS)
    parser.add_argument("--unit", default="rad")
    parser.add_argument("--leap", type=float, default=0.0)
    parser.add_argument("--begin", type=json.loads, default=())
    args = parser.parse_args(arguments)
    terms = contract(args.embodiment, args.unit, tuple(args.begin))
    hosted = Hosted(Reach(terms, args.takes, args.leap))
    server = PolicyServer({"reach": lambda: hosted}, [args.bind])
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.run()
