"""`robot-stack crowd serve`: the site, in one or several worker processes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import stat
import tempfile
from urllib.parse import urlsplit

import uvicorn
from uvicorn.supervisors import Multiprocess

from collect.crowd import consent
from collect.crowd.commands import config_argument
from collect.crowd.config import (
    CONFIG_VARIABLE,
    ENVIRONMENT,
    CrowdConfig,
    TlsConfig,
    load_config,
    split_bind,
)
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.log import configure, log
from collect.crowd.migrate import migrate
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "check_tls", "run"]

MAX_HEADERS = 32 << 10
MAX_WORKERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the public site. The database is brought to this version's tables first. Refuses to "
        "start on a missing or weak key, a default database password, or plain http beyond this "
        "computer, and says what to do instead."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd init --development       once: settings to try it on this computer\n"
        "  robot-stack crowd serve                    http://127.0.0.1:8430 by those settings\n"
        "  robot-stack crowd serve --workers 4        one process a core (with many visitors)\n"
        "\nHTTPS: `tls: {certificate: site.pem, key: site.key}` in the settings, or a reverse\n"
        "proxy with `trusted_proxies: [its address]`, which sends Host, X-Forwarded-For and\n"
        "X-Forwarded-Proto. Certificates that are renewed need a restart."
    )
    config_argument(parser)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--bind", metavar="HOST:PORT", help="in place of the settings' `bind`")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MAX_WORKERS:
        raise ConfigError(f"--workers {args.workers} is out of range, allowed 1..{MAX_WORKERS}")
    # Workers load the settings themselves: what differs from the file reaches them like this.
    os.environ[CONFIG_VARIABLE] = str(args.config.resolve())
    if args.bind:
        os.environ[ENVIRONMENT + "BIND"] = args.bind
    config = load_config(args.config)
    load_key(config.key_file)
    check_tls(config.tls)
    for folder in (config.media, config.episodes):
        folder.mkdir(parents=True, exist_ok=True)
    database = Database(config.database)
    migrate(database)
    configure()
    with database.read() as tx:
        news = consent.outdated(tx)
    database.close()
    if news is not None:
        log.warning(news)
    with _listen(config) as listener, tempfile.TemporaryDirectory(prefix="crowd-") as metrics:
        host, port = listener.getsockname()[:2]
        if config.development:  # where the port is chosen by --bind, or by the system
            name = urlsplit(config.origin).hostname
            os.environ[ENVIRONMENT + "ORIGIN"] = f"http://{name}:{port}"
            config = load_config(args.config)
        if not args.json:
            print(f"the crowd site is at {config.origin}  (Ctrl-C ends it)")
        answer = {"ok": True, "url": config.origin, "bind": f"{host}:{port}", "pid": os.getpid()}
        print(json.dumps(answer), flush=True)
        settings = _uvicorn(config, args.workers)
        if args.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
            Multiprocess(settings, sockets=[listener]).run()
        else:
            uvicorn.Server(settings).run(sockets=[listener])
    return 0


def check_tls(tls: TlsConfig | None) -> None:
    """ConfigError when certificate and key can't be used, or everybody may read the key."""
    if tls is None:
        return
    for path in (tls.certificate, tls.key):
        if not os.access(path, os.R_OK):
            raise ConfigError(f"cannot read {path} of `tls:`; give the paths of PEM files")
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    if mode & 0o007:
        raise ConfigError(f"everybody may read {tls.key} (mode {mode:04o}): `chmod o= {tls.key}`")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{tls.certificate} and {tls.key} are no certificate with its key (PEM, without a "
            f"passphrase): {error.reason}"
        ) from error


def _listen(config: CrowdConfig) -> socket.socket:
    host, port = split_bind(config.bind)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.bind}: {error.strerror}; choose another --bind HOST:PORT"
        ) from error
    listener.set_inheritable(True)
    return listener


def _uvicorn(config: CrowdConfig, workers: int) -> uvicorn.Config:
    tls = config.tls
    return uvicorn.Config(
        "collect.crowd.app:from_environment",
        factory=True,
        workers=workers,
        # The application does this itself, for the proxies of the settings only.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=3,
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
    )
