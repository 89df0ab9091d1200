"""What a server or an evaluation hosts: a policy, with a weak one beside it for contrast."""

from __future__ import annotations

from dataclasses import dataclass

from policies.interfaces import Need, Policy
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError

__all__ = ["Hosted"]


@dataclass(frozen=True)
class Hosted:
    """A strong policy and, for BID's contrast, a weak one: an early checkpoint of the same run.

    ``together``: the two may sample at the same time, each called from a thread of its own.
    """

    strong: Policy
    weak: Policy | None = None
    together: bool = False

    def __post_init__(self) -> None:
        if self.weak is None:
            return
        mine, other = self.strong.contract, self.weak.contract
        found = mine.differences(other)
        for field in ("observations", "horizon", "first_action"):
            if getattr(mine, field) != getattr(other, field):
                found.append(f"{field}: {getattr(mine, field)} and {getattr(other, field)}")
        if found:
            raise PolicyError(
                "the weak checkpoint is no contrast to the strong one: "
                + "; ".join(found)
                + "; take an early checkpoint of the same training run"
            )

    @property
    def contract(self) -> PolicyContract:
        """The strong policy's."""
        return self.strong.contract

    @property
    def gives(self) -> frozenset[Need]:
        """What decoders may count on."""
        return self.strong.gives | ({Need.CONTRAST} if self.weak else frozenset())
