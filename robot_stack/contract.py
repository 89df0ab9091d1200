"""What a policy expects and promises: features in order, units, rates, images.

A checkpoint keeps its contract as JSON; the policy server sends it at the handshake; the runner
builds the same record from the station and refuses to move when the two differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robot_stack.config import parse, within

__all__ = ["CameraInput", "Feature", "PolicyContract", "Unit"]

Unit = Literal["rad", "m", "fraction", "px", "1"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of the state or the action.

    ``name`` is ``<robot>/<joint>`` for a joint, ``env/<i>`` for column i of a world's
    ``env_state``; ``unit`` is the joint's (``JointSpec.unit``), ``px`` or ``1`` in planar worlds.
    """

    name: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class CameraInput:
    """One camera as the policy sees it: uint8 RGB (height, width, 3), resized by the sender."""

    name: str
    height: int = within(1, 4096)
    width: int = within(1, 4096)


@dataclass(frozen=True, slots=True)
class PolicyContract:
    """The interface of one policy.

    The policy sees ``observations`` (To) states and frames, ``control_dt_ns`` apart, the newest
    last, and answers ``horizon`` (Tp) actions ``control_dt_ns`` apart. Row ``first_action`` is the
    action for the moment of the newest observation (To - 1 in Diffusion Policy, 0 in ACT); rows
    before it repeat the past. ``execute`` (Ta) is how many rows from there on are meant to be
    executed before the next chunk. ``normalizer`` names the statistics (SHA-256, hex). ``start`` is
    where the demonstrations began, one value an action (their median), empty when unknown.
    """

    name: str
    embodiment: str
    task: str
    state: tuple[Feature, ...]
    action: tuple[Feature, ...]
    cameras: tuple[CameraInput, ...]
    control_dt_ns: int = within(1_000_000, 10_000_000_000, "ns")
    observations: int = within(1, 64)
    horizon: int = within(1, 1024)
    first_action: int = within(0, 63)
    execute: int = within(1, 1024)
    mode: Literal["joint_position"] = "joint_position"
    normalizer: str = ""
    start: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.first_action >= self.horizon:
            raise ValueError(
                f"first_action {self.first_action} must lie in the horizon of {self.horizon} rows"
            )
        if self.start and len(self.start) != len(self.action):
            raise ValueError(
                f"start has {len(self.start)} values for {len(self.action)} action features"
            )
        if self.execute > self.rows:
            raise ValueError(
                f"execute is {self.execute}, but a chunk has {self.rows} rows from the newest "
                "observation on"
            )

    @property
    def rows(self) -> int:
        """H: how many actions a reply holds, from the moment of the newest observation on."""
        return self.horizon - self.first_action

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "policy contract") -> PolicyContract:
        """ConfigError names an unknown, missing or impossible key."""
        return parse(cls, values, where)

    def differences(self, offered: PolicyContract) -> list[str]:
        """In which fields that matter for control ``offered`` is not this contract, in words.

        ``name``, ``task``, ``normalizer`` and ``start`` are the policy's own and not compared.
        """
        found = []
        for field in ("embodiment", "control_dt_ns", "mode"):
            mine, other = getattr(self, field), getattr(offered, field)
            if mine != other:
                found.append(f"{field}: the policy has {mine!r}, offered is {other!r}")
        for field in ("state", "action", "cameras"):
            found += _compare(field, getattr(self, field), getattr(offered, field))
        return found


def _compare(
    field: str,
    mine: tuple[Feature | CameraInput, ...],
    other: tuple[Feature | CameraInput, ...],
) -> list[str]:
    names, offered = [item.name for item in mine], [item.name for item in other]
    missing = [name for name in names if name not in offered]
    extra = [name for name in offered if name not in names]
    found = []
    if missing:
        found.append(f"{field}: the policy needs {', '.join(missing)}, which is not offered")
    if extra:
        found.append(f"{field}: {', '.join(extra)} is offered, which the policy does not know")
    if found:
        return found
    if names != offered:
        return [
            f"{field}: the policy's order is {', '.join(names)}; offered is {', '.join(offered)}"
        ]
    return [
        f"{field}: the policy has {a}, offered is {b}"
        for a, b in zip(mine, other, strict=True)
        if a != b
    ]
