"""The error tree: every message says what was wrong, what was allowed, and what to do next."""

from __future__ import annotations

__all__ = [
    "BusError",
    "CommandRefusedError",
    "ConfigError",
    "ControlPlaneError",
    "DeviceError",
    "EpisodeError",
    "LeaseError",
    "MessageError",
    "MissingDependencyError",
    "PolicyError",
    "RegistryError",
    "RobotStackError",
    "SharedMemoryError",
]


class RobotStackError(Exception):
    """Base of every error that robot-stack raises on purpose."""


class ConfigError(RobotStackError):
    """A station file or option is wrong; the message names file, line, key and what is allowed."""


class RegistryError(RobotStackError):
    """A driver, policy or subcommand name that no registry row or entry point provides."""


class MissingDependencyError(RobotStackError):
    """An optional package is not installed; the message holds the command that installs it."""


class DeviceError(RobotStackError):
    """A robot, camera or teleoperation device failed or answered something impossible."""


class BusError(DeviceError):
    """A serial bus gave no answer, or its port went away."""


class SharedMemoryError(RobotStackError):
    """A shared-memory segment is missing, of another layout, or already has a living writer."""


class MessageError(RobotStackError):
    """Bytes from a socket that are not a message of this protocol version."""


class ControlPlaneError(RobotStackError):
    """The supervisor did not answer, or answered with a refusal."""


class LeaseError(ControlPlaneError):
    """The lease was refused, lost or has expired."""


class CommandRefusedError(RobotStackError):
    """A command was malformed, stale, out of lease or addressed to the wrong group."""


class EpisodeError(RobotStackError):
    """An episode file is unreadable, incomplete or does not match what was asked of it."""


class PolicyError(RobotStackError):
    """A policy, checkpoint or policy server refused; ``code`` names the reason for programs."""

    def __init__(self, text: str, code: str = "refused") -> None:
        super().__init__(text)
        self.code = code
