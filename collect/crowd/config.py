"""Settings of the crowd site: a YAML file; `ROBOT_STACK_CROWD_*` in the environment go first."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import os
import re
import stat
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from robot_stack.config import parse, read_yaml, within
from robot_stack.errors import ConfigError

__all__ = [
    "CONFIG_VARIABLE",
    "ENVIRONMENT",
    "CapsConfig",
    "CrowdConfig",
    "PointsConfig",
    "RetentionConfig",
    "ReviewConfig",
    "SessionsConfig",
    "TlsConfig",
    "is_loopback",
    "load_config",
    "split_bind",
]

ENVIRONMENT = "ROBOT_STACK_CROWD_"
CONFIG_VARIABLE = ENVIRONMENT + "CONFIG"
MIN_PASSWORD = 12


@dataclass(frozen=True)
class TlsConfig:
    """Certificate chain and private key (PEM) where the site itself speaks HTTPS."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class PointsConfig:
    """What a success is worth, by difficulty."""

    easy: int = within(1, 1000, default=10)
    hard: int = within(1, 1000, default=20)


@dataclass(frozen=True)
class CapsConfig:
    """How much of something is taken before it is refused.

    ``body_kb`` is of an ordinary request, ``upload_mb`` of an episode that an agent uploads.
    ``plays_per_day`` is of one participant; ``viewers`` of live pages, a worker process;
    ``writes_per_minute`` of forms and JSON from one address (a kiosk, or a whole Wi-Fi).
    """

    body_kb: int = within(4, 4096, "KiB", default=64)
    upload_mb: int = within(1, 65536, "MiB", default=2048)
    plays_per_day: int = within(1, 10000, default=60)
    viewers: int = within(1, 100000, default=6000)
    writes_per_minute: int = within(10, 100000, default=600)


@dataclass(frozen=True)
class SessionsConfig:
    """How long a browser stays signed in, seconds: unused (``idle_s``) and at most (``limit_s``).

    ``kiosk`` is of participants at a kiosk, ``phone`` of those at their own device.
    """

    kiosk_idle_s: float = within(15, 3600, "s", default=90.0)
    kiosk_limit_s: float = within(60, 86400, "s", default=3600.0)
    phone_idle_s: float = within(60, 86400, "s", default=1800.0)
    phone_limit_s: float = within(300, 604800, "s", default=43200.0)
    staff_idle_s: float = within(60, 28800, "s", default=1800.0)
    staff_limit_s: float = within(300, 86400, "s", default=28800.0)


@dataclass(frozen=True)
class RetentionConfig:
    """After how many days without a visit something is forgotten.

    ``card_days``: the keyed hash of a card. ``guest_days``: a guest without a nickname or a
    recording for research. With either go the recordings that were not given for research; people
    are told so when they consent, so longer days are for who comes from then on.
    ``session_days``: ended sessions and used pairing codes. ``audit_days``: what staff did.
    """

    card_days: int = within(1, 3650, "days", default=180)
    guest_days: int = within(1, 3650, "days", default=30)
    session_days: int = within(1, 365, "days", default=7)
    audit_days: int = within(30, 3650, "days", default=730)


@dataclass(frozen=True)
class ReviewConfig:
    """The review desk. ``double_share`` of the plays is looked at by two reviewers, who don't see
    each other's; ``video_queue`` plays at most wait for their video, a worker process; videos of
    the ``video_keep`` plays that were made last are kept, and others made again when asked for."""

    double_share: float = within(0.0, 1.0, default=0.2)
    video_queue: int = within(1, 1000, "plays", default=8)
    video_keep: int = within(1, 100_000, "plays", default=300)


@dataclass(frozen=True)
class CrowdConfig:
    """Everything that the site must be told. Relative paths are relative to the YAML file.

    ``origin`` is what browsers call the site (``https://robots.example.org``): requests to any
    other Host are refused. ``development`` allows plain http, on loopback only.
    ``zone``: at whose midnight the leaderboards' days begin (``Europe/Berlin``).
    ``trusted_proxies`` are addresses or networks whose X-Forwarded-For and -Proto are believed.
    """

    database: str = field(repr=False)  # may hold a password
    key_file: Path
    origin: str
    media: Path
    episodes: Path
    bind: str = "127.0.0.1:8430"
    development: bool = False
    tls: TlsConfig | None = None
    trusted_proxies: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en", "de")
    zone: str = "UTC"
    points: PointsConfig = field(default_factory=PointsConfig)
    caps: CapsConfig = field(default_factory=CapsConfig)
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)

    def __post_init__(self) -> None:
        origin = urlsplit(self.origin)
        if (
            origin.scheme not in ("http", "https")
            or not origin.hostname
            or self.origin != (f"{origin.scheme}://{origin.netloc}")
        ):
            raise ValueError(
                f"origin {self.origin!r} must be scheme, host and port only, "
                "for example https://robots.example.org"
            )
        if origin.username or origin.hostname != origin.hostname.lower():
            raise ValueError(f"origin {self.origin!r} must have a lower-case host and no user")
        host, _ = split_bind(self.bind)
        if self.development and not (is_loopback(host) and is_loopback(origin.hostname)):
            raise ValueError(
                "`development: true` is for this computer only: bind and origin must be loopback "
                f"(127.0.0.1 or localhost), not {self.bind} and {self.origin}"
            )
        if not self.development and origin.scheme != "https":
            raise ValueError(
                f"origin {self.origin} is plain http: card readers and sessions of the public need "
                "https. Give an https origin with `tls:` or behind a `trusted_proxies:` reverse "
                "proxy, or, to try it on this computer alone, set `development: true`"
            )
        if origin.scheme == "https" and self.tls is None and not self.trusted_proxies:
            raise ValueError(
                "origin is https but nothing here speaks it: set `tls: {certificate, key}`, or "
                "`trusted_proxies:` to the address of the reverse proxy that does"
            )
        for network in self.trusted_proxies:
            if ipaddress.ip_network(network, strict=False).prefixlen == 0:
                raise ValueError(f"trusted_proxies: {network} would let anybody choose its address")
        if not self.languages:
            raise ValueError("languages must name at least one, for example [en, de]")
        if self.zone not in _zones():
            raise ValueError(
                f"zone {self.zone!r} is not a time zone; name one as Europe/Berlin or UTC"
            )
        _check_database(self.database)

    @property
    def https(self) -> bool:
        return self.origin.startswith("https:")

    @property
    def host(self) -> str:
        """What the Host header must say."""
        return urlsplit(self.origin).netloc


@functools.cache
def _zones() -> frozenset[str]:
    """The names of all time zones: hundreds of files are looked at."""
    return frozenset(zoneinfo.available_timezones())


def split_bind(bind: str) -> tuple[str, int]:
    """Host and port of ``host:port`` (``[::1]:8430`` for IPv6); ValueError if it is none."""
    parts = urlsplit(f"//{bind}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None:
        raise ValueError(f"bind {bind!r} must be HOST:PORT, for example 127.0.0.1:8430")
    return parts.hostname, port


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, no port) is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_config(path: str | Path, environment: Mapping[str, str] | None = None) -> CrowdConfig:
    """Settings of a YAML file with what the environment overrides.

    ``ROBOT_STACK_CROWD_DATABASE``, ``_KEY_FILE``, ``_ORIGIN``, ``_BIND``, ``_MEDIA`` and
    ``_EPISODES`` take the place of the keys of those names. ConfigError names file, line and key.
    """
    path = Path(path).resolve()
    environment = os.environ if environment is None else environment
    section = read_yaml(path, "crowd site file", "crowd.yaml (`robot-stack crowd init` makes one)")
    overrides = {
        key: value
        for key in ("database", "key_file", "origin", "bind", "media", "episodes")
        if (value := environment.get(ENVIRONMENT + key.upper()))
    }
    for key, value in overrides.items():
        section._values[key] = value
    config = parse(CrowdConfig, section)
    if urlsplit(config.database).password and "database" not in overrides:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"{path} holds a database password and others may read it (mode {mode:04o}): "
                f"`chmod 600 {path}`"
            )
    here = path.parent
    tls = config.tls
    return dataclasses.replace(
        config,
        database=_absolute_database(config.database, here),
        key_file=here / config.key_file,
        media=here / config.media,
        episodes=here / config.episodes,
        tls=None if tls is None else TlsConfig(here / tls.certificate, here / tls.key),
    )


def _absolute_database(url: str, here: Path) -> str:
    prefix = "sqlite:///"
    if url.startswith(prefix) and not url.startswith(prefix + "/"):
        return f"{prefix}{here / url.removeprefix(prefix)}"
    return url


def _check_database(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        if not url.startswith("sqlite:///") or parts.path in ("", "/", "/:memory:"):
            raise ValueError(
                "database must be a file, shared by all workers: sqlite:///crowd.db (relative) or "
                "sqlite:////var/lib/crowd/crowd.db"
            )
        return
    if parts.scheme not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(
            f"database {parts.scheme or url!r} is not supported; give sqlite:///crowd.db or "
            "postgresql://USER:PASSWORD@HOST/NAME"
        )
    password = parts.password
    if password is None:
        return  # a socket with peer authentication, or a passfile
    plain = unquote(password)
    weak = re.search(r"change.?me|passwor[dt]|example|secret|default", plain, re.IGNORECASE)
    if weak or len(plain) < MIN_PASSWORD or len(set(plain)) < 6 or plain == parts.username:
        raise ValueError(
            "the database's password is a default or weak one; make another with "
            "`openssl rand -hex 24` and set it with ALTER ROLE ... PASSWORD"
        )
