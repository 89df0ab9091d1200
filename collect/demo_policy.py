"""The demo's last act: the policy that comes with the project does one transfer in closed loop.

It was trained by `robot-stack train` from episodes of the scripted operator (docs/training.md),
sees joint positions and the cube's pose, no images, and is served like any other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from collect.policy_episode import PolicyEpisode
from collect.rollout import PolicyRunner
from collect.run_policy import open_policy
from collect.session import RecordingSession, recorded_group
from hardware.worlds.control import WorldClient
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import PolicyError
from robot_stack.policy_client import PolicyClient

__all__ = ["CHECKPOINT", "policy_rollout", "wait_ready"]

CHECKPOINT = Path(__file__).parents[1] / "configs" / "checkpoints" / "aloha_transfer_state"
SERVER = "policy"
TRIES = 3  # cubes in new places; the result says how many it took
SECONDS = 25.0
READY_S = 60.0


def wait_ready(alive: Callable[[], None]) -> None:
    """Wait until the policy server answers; ``alive`` raises when its process has ended."""
    deadline = time.monotonic() + READY_S
    while True:
        alive()
        with contextlib.closing(PolicyClient(SERVER, timeout_s=1.0)) as client:
            try:
                client.wait_ready(1.0)
                return
            except PolicyError:
                if time.monotonic() > deadline:
                    raise


def policy_rollout(
    station: Station,
    directory: Path,
    seed: int,
    say: Callable[[str], None],
    heed: Callable[[], None],
) -> dict[str, Any]:
    """Roll out the served policy until it succeeds once, recording each try into ``directory``.

    ``heed`` raises when the demo shall end.

    Returns success, tries, the last file and the chunks' latency as plain JSON.
    """

    def cancelled() -> bool:
        heed()
        return False

    group = recorded_group(station)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(StationClient(station.station))
        world = stack.enter_context(WorldClient(station.station))
        policy = open_policy(SERVER, station, group, client)
        stack.callback(policy.close)
        about = {"name": policy.contract.name, "decoder": "receding_horizon"}
        recording = stack.enter_context(
            RecordingSession(station, directory=directory, operator="policy", policy=about)
        )
        for number in range(1, TRIES + 1):
            say(f"the policy {policy.contract.name} moves the arms, try {number}")
            episode = PolicyEpisode(
                PolicyRunner(station, group, client, policy, say=say),
                seconds=SECONDS,
                recording=recording,
                before=partial(world.call, "reset", seed=seed + number),
            )
            result = episode.run(cancelled)
            if result["success"]:
                break
    latency = result["latency_ms"]
    return {
        "success": bool(result["success"]),
        "tries": number,
        "chunks": result["chunks"],
        "starved_ticks": result["starved_ticks"],
        "chunk_latency_ms": latency.get("total", {}),
        "inference_ms": latency.get("infer", {}),
        "file": result.get("file", ""),
    }
