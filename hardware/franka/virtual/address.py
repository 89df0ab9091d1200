"""Where virtual arms live: loopback addresses, one an arm, since the FCI's ports are fixed."""

from __future__ import annotations

__all__ = ["ADDRESSES", "ANY", "control_name"]

ANY = "any"
"""In place of an address: the first free one of ADDRESSES."""
ADDRESSES = tuple(f"127.0.0.{n}" for n in range(2, 255))


def control_name(address: str) -> str:
    """The name under which the arm at ``address`` takes faults (see worlds.control.WorldClient)."""
    return f"franka-{address}"
