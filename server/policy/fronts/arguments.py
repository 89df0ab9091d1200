"""The options of `robot-stack policy serve` for the openpi front."""

from __future__ import annotations

import argparse
import contextlib
import stat
from pathlib import Path

from robot_stack.errors import PolicyError

__all__ = ["add_openpi", "openpi_front"]


def add_openpi(parser: argparse.ArgumentParser) -> None:
    """Add the options; nothing of websockets is imported before a port is given."""
    group = parser.add_argument_group("openpi front", "for clients that speak openpi's websocket")
    add = group.add_argument
    add("--openpi-port", type=int, metavar="PORT", help="listen there (0: any free port)")
    add(
        "--openpi-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="default: this computer only; others need a token and a certificate",
    )
    add("--openpi-policy", default="", metavar="NAME", help="which policy, where there are several")
    add("--openpi-decoder", default="receding_horizon", metavar="DECODER", help="of its sessions")
    add(
        "--openpi-layout",
        choices=("openpi", "aloha", "droid"),
        default="openpi",
        help="the observation's keys: observation/state and observation/images/CAMERA; state and "
        "images/CAMERA in planes; DROID's and RoboArena's",
    )
    add(
        "--openpi-image",
        action="append",
        default=[],
        metavar="CAMERA=KEY",
        help="another key for the images of a camera",
    )
    add("--openpi-token-file", type=Path, metavar="FILE", help="clients give its text as api_key")
    add("--openpi-cert", type=Path, metavar="FILE", help="certificate (PEM), for wss://")
    add("--openpi-key", type=Path, metavar="FILE", help="its key, where CERT does not hold it")


def openpi_front(
    args: argparse.Namespace, endpoint: str
) -> contextlib.AbstractContextManager[object]:
    """The front that ``args`` ask for, before the server at ``endpoint``; starts with the block."""
    if args.openpi_port is None:
        return contextlib.nullcontext()
    from .openpi import FrontOptions
    from .process import FrontProcess

    renamed = {}
    for pair in args.openpi_image:
        camera, equals, key = pair.partition("=")
        if not equals or not camera or not key:
            raise PolicyError(f"--openpi-image {pair!r} is not CAMERA=KEY")
        renamed[camera] = key
    options = FrontOptions(
        endpoint=endpoint,
        host=args.openpi_host,
        port=args.openpi_port,
        policy=args.openpi_policy,
        decoder=args.openpi_decoder,
        layout=args.openpi_layout,
        renamed=renamed,
        token=_token(args.openpi_token_file),
        certificate=args.openpi_cert,
        key=args.openpi_key,
    )
    return FrontProcess(options)


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise PolicyError(f"others may read {path}: chmod 600 {path}", "keys")
        return path.read_text().strip()
    except OSError as error:
        raise PolicyError(f"no token in {path}: {error}", "keys") from error
