"""Options of the browser teleoperator, read alike by the Teleoperator and by its page's process."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from hardware.teleop.mapper import MotionConfig
from robot_stack.config import within

__all__ = ["PORT", "BrowserConfig", "is_loopback"]

PORT = 8730


def is_loopback(host: str) -> bool:
    """Whether a host name or address (no port) can only mean this computer."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class BrowserConfig:
    """``teleop.options`` of driver ``browser``.

    robot       which arm of the group, where it has several
    motion      what a pad pushed to its rim means, at speed 100 %
    host, port  where the page is served; a host that others can reach needs ``authenticate``
    authenticate  nobody gets in without a one-time link, which the terminal shows
    names       further names by which browsers call this computer
    certificate, key   PEM files: https. Without it what is typed and shown can be read on the way,
                and browsers of other computers don't give a page their gamepad
    stale_s     a page that is silent for so long must press the dead-man switch anew
    max_round_trip_s   a packet that may be older than this moves nothing
    """

    robot: str = ""
    motion: MotionConfig = field(default_factory=MotionConfig)
    host: str = "127.0.0.1"
    port: int = within(0, 65535, default=PORT)
    authenticate: bool = False
    names: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    stale_s: float = within(0.05, 1.0, "s", default=0.2)
    max_round_trip_s: float = within(0.02, 2.0, "s", default=0.3)

    def __post_init__(self) -> None:
        if not self.authenticate and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} lets the network move the robot: add `authenticate: true` "
                "(it prints a one-time link), or leave host out and use "
                f"`ssh -L {self.port or PORT}:localhost:{self.port or PORT}`"
            )
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are PEM files that go together: give both")
