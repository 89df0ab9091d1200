"""`robot-stack crowd init`: settings and a key file for a new site, for their owner only."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from collect.crowd.config import CrowdConfig, load_config
from collect.crowd.keys import load_key, write_key
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run", "write_site"]

TEMPLATE = """\
# Settings of the crowd site; `robot-stack crowd serve --config {path}` runs it.
# Paths are relative to this file. Unknown keys are refused with the nearest name.

# sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/NAME (then keep this file at mode 0600, or give
# the URL as ROBOT_STACK_CROWD_DATABASE).
database: sqlite:///crowd.db

# The site's secret: losing it makes every card and staff login unknown. Back it up, apart from the
# database.
key_file: {key}

# What browsers call the site. Requests to another name are refused.
origin: {origin}
bind: {bind}
{security}
media: media          # clips and review videos
episodes: episodes    # where agents' episodes arrive
languages: [en, de]
zone: UTC             # days of the leaderboards begin at its midnight (Europe/Berlin)

# points: {{easy: 10, hard: 20}}
# sessions: {{kiosk_idle_s: 90}}
# retention: {{card_days: 180, guest_days: 30, session_days: 7, audit_days: 730}}
# review: {{double_share: 0.2, video_keep: 300}}
"""
DEVELOPMENT = "development: true     # plain http, on this computer only\n"
PRODUCTION = """\
# HTTPS: either this site speaks it itself,
tls: {certificate: site.pem, key: site.key}
# or a reverse proxy does, whose address is then believed about X-Forwarded-For and -Proto:
# trusted_proxies: [127.0.0.1]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the settings and the key of a new site, both with mode 0600. Overwrites nothing."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd init --development                       to try it, on this computer\n"
        "  robot-stack crowd init site/crowd.yaml --origin https://robots.example.org\n"
        "  robot-stack crowd init --key-only /etc/robot-stack/crowd.key   only a good key"
    )
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("crowd.yaml"), help="settings (crowd.yaml)"
    )
    parser.add_argument("--origin", help="what browsers will call the site, https://...")
    parser.add_argument("--bind", default="127.0.0.1:8430", metavar="HOST:PORT")
    parser.add_argument(
        "--development", action="store_true", help="plain http, for this computer only"
    )
    parser.add_argument("--key-only", type=Path, metavar="FILE", help="write a key and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.key_only:
        write_key(args.key_only)
        return _say(args, {"ok": True, "key": str(args.key_only)})
    if args.development == bool(args.origin):
        raise ConfigError(
            "say where the site will be: `--origin https://robots.example.org`, or `--development` "
            "to try it on this computer alone"
        )
    write_site(args.file, origin=args.origin, bind=args.bind)
    return _say(
        args,
        {"ok": True, "config": str(args.file), "key": str(args.file.with_suffix(".key"))},
    )


def write_site(path: Path, *, origin: str | None, bind: str = "127.0.0.1:8430") -> CrowdConfig:
    """Settings at ``path`` and the key beside it (mode 0600); what was written, as loaded.

    Without ``origin`` the site is for development: plain http on ``bind``, which is loopback.
    ConfigError when something is there already or would not be accepted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    key = path.with_suffix(".key")
    text = TEMPLATE.format(
        path=path,
        key=key.name,
        origin=origin or f"http://{bind}",
        bind=bind,
        security=PRODUCTION if origin else DEVELOPMENT,
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; name another file or move this one away"
        ) from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        config = load_config(path, {})
        write_key(key)
    except ConfigError:
        path.unlink()
        raise
    load_key(config.key_file)
    return config


def _say(args: argparse.Namespace, answer: dict[str, object]) -> int:
    if not args.json:
        if "config" in answer:
            print(f"wrote {answer['config']} and {answer['key']} (mode 0600); keep the key safe")
            print(
                f"next: robot-stack crowd staff add NAME --role admin --config {answer['config']}"
            )
            print(f"      robot-stack crowd serve --config {answer['config']}")
        else:
            print(f"wrote {answer['key']} (mode 0600); keep it safe")
    print(json.dumps(answer))
    return 0
