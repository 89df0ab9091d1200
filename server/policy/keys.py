"""CURVE keys of a policy server: made, read, and checked at every handshake (ZAP, ZMQ RFC 27).

DIR/server.json           the server's own pair
DIR/allowed/NAME.pub      one client that may connect: its public key; delete it to shut it out
DIR/clients/NAME.json     what that client needs: carry it to the client's computer
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from robot_stack.errors import PolicyError

__all__ = ["Authenticator", "ServerKeys", "make_keys"]

DOMAIN = b"policy"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ServerKeys:
    """A server's pair and the directory that lists who may connect."""

    directory: Path
    public: bytes
    secret: bytes

    @classmethod
    def read(cls, directory: str | Path) -> ServerKeys:
        """PolicyError when ``keygen`` has not been there, or others may read the secret."""
        directory = Path(directory)
        path = directory / "server.json"
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise PolicyError(f"others may read {path}: chmod 600 {path}", "keys")
            values = json.loads(path.read_text())
            return cls(directory, values["public"].encode(), values["secret"].encode())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(
                f"{path} holds no server keys ({error!r}); make them with "
                f"`robot-stack policy keygen --to {directory}`",
                "keys",
            ) from error

    def client(self, public: bytes) -> str | None:
        """Whose key this is, if it may connect. Read anew each time: no restart to let one in."""
        for path in sorted((self.directory / "allowed").glob("*.pub")):
            if path.read_bytes().strip() == public:
                return path.stem
        return None


def make_keys(directory: str | Path, clients: list[str]) -> list[Path]:
    """Make the server's pair, if it is missing, and one a client; returns the files written.

    PolicyError for a client that has keys already.
    """
    directory = Path(directory)
    for name in clients:
        if not NAME.fullmatch(name):
            raise PolicyError(f"{name!r} is no client name: letters, digits, '_', '-', '.'", "keys")
        if (directory / "allowed" / f"{name}.pub").exists():
            raise PolicyError(
                f"client {name!r} has keys in {directory} already: choose another name, or delete "
                f"{directory / 'allowed' / f'{name}.pub'} to shut that one out",
                "keys",
            )
    for path in (directory, directory / "allowed", directory / "clients"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    if not (directory / "server.json").exists():
        public, secret = zmq.curve_keypair()
        values = {"public": public.decode(), "secret": secret.decode()}
        written.append(_write(directory / "server.json", json.dumps(values)))
    server = ServerKeys.read(directory)
    for name in clients:
        public, secret = zmq.curve_keypair()
        values = {
            "public": public.decode(),
            "secret": secret.decode(),
            "server": server.public.decode(),
        }
        written.append(_write(directory / "clients" / f"{name}.json", json.dumps(values)))
        written.append(_write(directory / "allowed" / f"{name}.pub", public.decode()))
    return written


def _write(path: Path, text: str) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    return path


class Authenticator:
    """Answers libzmq's question at every CURVE handshake in its context: may this key connect?

    Its socket belongs into the server's poll loop: no thread.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys) -> None:
        self.keys = keys
        self.socket = context.socket(zmq.REP)
        self.socket.bind(ZAP_ENDPOINT)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Only clients with a key of the list may connect to ``socket``; call before it binds."""
        socket.curve_server = True
        socket.curve_publickey = self.keys.public
        socket.curve_secretkey = self.keys.secret
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> str | None:
        """Answer one handshake; the text names a client that was turned away."""
        frames = self.socket.recv_multipart()
        number = frames[1] if len(frames) > 1 else b""
        name = None
        if len(frames) == 7 and frames[0] == ZAP_VERSION and frames[5] == b"CURVE":
            name = self.keys.client(z85.encode(frames[6]))
        if name is None:
            self.socket.send_multipart([ZAP_VERSION, number, b"400", b"not allowed", b"", b""])
            return frames[3].decode(errors="replace") if len(frames) > 3 else "unknown"
        self.socket.send_multipart([ZAP_VERSION, number, b"200", b"OK", name.encode(), b""])
        return None
