"""Where a policy server may listen: this computer, or with keys anywhere."""

from __future__ import annotations

import fcntl
import ipaddress
import os
from pathlib import Path

import zmq

from robot_stack.errors import PolicyError

__all__ = ["bind", "is_ipc", "require_keys"]

UNIX_PATH_MAX = 107


def is_ipc(endpoint: str) -> bool:
    """Whether it is a socket file, which file permissions keep to this user."""
    return endpoint.startswith("ipc://")


def require_keys(endpoint: str, *, keys: bool) -> None:
    """PolicyError unless ``endpoint`` is local or there are keys to guard it."""
    if is_ipc(endpoint):
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not host or not (port.isdecimal() or port == "*"):
        raise PolicyError(
            f"cannot listen at {endpoint!r}: give ipc://PATH or tcp://ADDRESS:PORT", "bad_endpoint"
        )
    if not keys and not _loopback(host):
        raise PolicyError(
            f"{endpoint} is open to other computers, and anybody there could use the policy: make "
            "keys with `robot-stack policy keygen --to DIR` and serve with `--keys DIR`, or bind "
            f"tcp://127.0.0.1:{port}",
            "keys",
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def bind(socket: zmq.Socket[bytes], endpoint: str) -> tuple[str, int | None]:
    """Bind; the address as bound and, for a socket file, the lock's file descriptor.

    A file that a killed server left is replaced, one that a living server serves is not.
    """
    lock = None
    try:
        if is_ipc(endpoint):
            path = Path(endpoint.removeprefix("ipc://"))
            lock = _lock(path)
            path.unlink(missing_ok=True)
            mask = os.umask(0o177)  # only this user may connect
            try:
                socket.bind(endpoint)
            finally:
                os.umask(mask)
        else:
            socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        if lock is not None:
            os.close(lock)
        raise PolicyError(f"cannot listen at {endpoint}: {error}", "bad_endpoint") from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT), lock


def _lock(path: Path) -> int:
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise PolicyError(
            f"{path} is longer than the {UNIX_PATH_MAX} bytes that a socket file's path may have; "
            "name a shorter directory in ROBOT_STACK_RUNTIME",
            "bad_endpoint",
        )
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise PolicyError(
            f"another policy server listens at ipc://{path}; see `robot-stack policy health "
            f"ipc://{path}`, or serve under another --name",
            "bad_endpoint",
        ) from None
    return lock
