"""The site's key: keyed hashes of what must not be kept, encryption of what must.

The key is a file beside the settings, never in the database: whoever steals the database can
neither guess card numbers nor read the staff's TOTP secrets. Each use has a key of its own,
derived with HKDF-Expand (RFC 5869) from the site's and the purpose.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from robot_stack.errors import ConfigError

__all__ = ["SiteKey", "load_key", "write_key"]

HEADER = "robot-stack-crowd-key-1:"
SIZE = 32
NONCE = 12
MIN_DISTINCT = 16  # 32 random bytes have fewer than 20 distinct values once in 10^9


class SiteKey:
    """What is made with the key. It is never shown: ``repr`` has no secret in it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SIZE or len(set(secret)) < MIN_DISTINCT:
            raise ConfigError(
                f"the site's key must be {SIZE} random bytes; this one is too short or a default. "
                "`robot-stack crowd init --key-only KEY_FILE` makes a good one"
            )
        self._secret = secret

    def __repr__(self) -> str:
        return "SiteKey(...)"

    def mac(self, purpose: str, value: str | bytes) -> str:
        """HMAC-SHA-256 of ``value`` in hex (64 characters); another ``purpose`` gives another."""
        data = value.encode() if isinstance(value, str) else value
        return hmac.new(self._derive(purpose), data, hashlib.sha256).hexdigest()

    def same(self, purpose: str, value: str | bytes, mac: str) -> bool:
        """Whether ``mac`` is that of ``value``, in a time that tells nothing."""
        return hmac.compare_digest(self.mac(purpose, value), mac)

    def encrypt(self, purpose: str, text: str) -> str:
        """AES-256-GCM; as text that fits a column. The purpose is authenticated with it."""
        nonce = os.urandom(NONCE)
        sealed = AESGCM(self._derive(purpose)).encrypt(nonce, text.encode(), purpose.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def decrypt(self, purpose: str, sealed: str) -> str:
        """What ``encrypt`` was given; ConfigError when the key or the purpose is another."""
        try:
            data = base64.urlsafe_b64decode(sealed)
            cipher = AESGCM(self._derive(purpose))
            return cipher.decrypt(data[:NONCE], data[NONCE:], purpose.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                f"{purpose} was sealed with another key; give the site the key file that it had "
                "when this was stored"
            ) from error

    def _derive(self, purpose: str) -> bytes:
        info = f"robot-stack crowd {purpose}".encode() + b"\x01"
        return hmac.new(self._secret, info, hashlib.sha256).digest()


def write_key(path: Path) -> None:
    """Make a key file with mode 0600; ConfigError when there is one (it would be lost)."""
    text = HEADER + secrets.token_hex(SIZE) + "\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists: a new key would make every card and every staff login unknown. Keep "
            "it, or move it away first"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(handle, "w") as file:
        file.write(text)


def load_key(path: Path) -> SiteKey:
    """The key of a file that only its owner may read; ConfigError with what to do about it."""
    make = f"`robot-stack crowd init --key-only {path}` makes one"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no key file {path}: {make}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            f"others may read the key file {path} (mode {mode:04o}): `chmod 600 {path}`"
        )
    if not re.fullmatch(re.escape(HEADER) + rf"[0-9a-f]{{{2 * SIZE}}}", text):
        raise ConfigError(f"{path} is not a key file of the crowd site: {make}")
    return SiteKey(bytes.fromhex(text.removeprefix(HEADER)))
