"""Accounts of staff: Argon2 passwords, one-time codes (TOTP) that work once, slow guessing.

Passwords follow ASVS 6.2: long, no rules about kinds of characters, none that are known or hold
the name. Whether name, password or code was wrong is not said, nor told by the time it takes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

import pyotp
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.keys import SiteKey
from collect.crowd.security.rate_limit import TooManyError
from collect.crowd.security.sessions import end_all
from collect.crowd.site import Site
from collect.crowd.tables import AuditEntry, Staff
from robot_stack.errors import ConfigError, RobotStackError

__all__ = [
    "ROLES",
    "SignInRefusedError",
    "add_staff",
    "change_password",
    "check_password",
    "disable",
    "enrolment_uri",
    "renew",
    "verify",
]

ROLES = ("reviewer", "operator", "admin")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,31}")
MIN_PASSWORD = 12
MAX_PASSWORD = 128  # hashing more would be a way to keep the site busy
STEP_S = 30  # RFC 6238
SIGN_IN = "staff sign-in"
BY_ADDRESS = "30 per 15 minutes"
BY_BOTH = "5 per 15 minutes"  # of an account from one address
# Of an account from wherever: so high that nobody is kept out by somebody who knows a name.
BY_ACCOUNT = "100 per 15 minutes"
BY_CODE = "5 per 15 minutes"  # of an account by who has its password, from wherever
COMMON = re.compile(
    r"passwor[dt]|qwert|asdf|letmein|welcome|willkommen|iloveyou|robot.?stack|change.?me|123456|abcdef",
    re.IGNORECASE,
)
TOTP_PURPOSE = "totp"

_hasher = PasswordHash((Argon2Hasher(),))
# Verified for names that nobody has, so that they take as long as others.
_NOBODY = _hasher.hash("nobody has this password")


class SignInRefusedError(RobotStackError):
    """Name, password or code is wrong, or the account is disabled."""

    def __init__(self) -> None:
        super().__init__("name, password or code is wrong; a code works once, wait for the next")


def check_password(password: str, name: str) -> None:
    """ConfigError unless it is a good one for the staff member ``name``."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ConfigError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if len(set(password)) < 6 or COMMON.search(password) or name.lower() in password.lower():
        raise ConfigError(
            "this password is easily guessed: it repeats, holds the name or a well-known one; "
            "`openssl rand -base64 18` makes a good one"
        )


def add_staff(
    tx: Session, key: SiteKey, name: str, role: str, password: str, by: str | None = None
) -> tuple[Staff, str]:
    """A new account and its TOTP secret (base32), which is shown once. ConfigError if refused.

    ``by``: the id of the admin who does it, None for whoever sits at the server.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: a name has 2 to 32 of a-z, 0-9, '.', '_' and '-'")
    if role not in ROLES:
        raise ConfigError(f"{role!r} is no role; there are {', '.join(ROLES)}")
    check_password(password, name)
    if tx.scalar(select(Staff.id).where(Staff.name == name)) is not None:
        raise ConfigError(f"there is a {name!r} already; `robot-stack crowd staff renew {name}`")
    secret = pyotp.random_base32()
    staff = Staff(
        name=name,
        role=role,
        password_hash=_hasher.hash(password),
        totp_secret=key.encrypt(TOTP_PURPOSE, secret),
    )
    tx.add(staff)
    tx.flush()
    tx.add(AuditEntry(staff_id=by, action="staff added", subject=staff.id, detail={"role": role}))
    return staff, secret


def renew(tx: Session, key: SiteKey, staff: Staff, password: str, by: str | None = None) -> str:
    """Another password and TOTP secret, which is given back; ends every session."""
    check_password(password, staff.name)
    secret = pyotp.random_base32()
    staff.password_hash = _hasher.hash(password)
    staff.totp_secret = key.encrypt(TOTP_PURPOSE, secret)
    staff.totp_step = 0
    staff.disabled = False
    end_all(tx, staff_id=staff.id)
    tx.add(AuditEntry(staff_id=by, action="staff renewed", subject=staff.id))
    return secret


def disable(tx: Session, staff: Staff, by: str | None = None) -> None:
    """Lock an account and end its sessions. ConfigError for the last admin."""
    admins = select(Staff.id).where(Staff.role == "admin", Staff.disabled.is_(False))
    if staff.role == "admin" and set(tx.scalars(admins)) <= {staff.id}:
        raise ConfigError(f"{staff.name} is the last admin; add another one first")
    staff.disabled = True
    end_all(tx, staff_id=staff.id)
    tx.add(AuditEntry(staff_id=by, action="staff disabled", subject=staff.id))


def enrolment_uri(origin: str, name: str, secret: str) -> str:
    """The otpauth:// URI that an authenticator reads as a QR code."""
    issuer = origin.partition("://")[2]
    return str(pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=issuer))


def verify(site: Site, name: str, password: str, code: str, address: str) -> Staff:
    """Who signs in. SignInRefusedError; TooManyError after too many attempts (see `BY_BOTH`).

    A code is good for its own 30 s and those before and after, once. Not inside ``begin()``.
    """
    with _proven(site, name, password, code, address) as (tx, staff):
        tx.add(AuditEntry(staff_id=staff.id, action="signed in", subject=staff.id))
    return staff


def change_password(
    site: Site, staff: Staff, password: str, code: str, new: str, address: str
) -> None:
    """Another password for somebody who has the old one and a code; ends all of its sessions.

    ConfigError for a bad one, else as `verify`. Not inside ``begin()``.
    """
    check_password(new, staff.name)
    hashed = _hasher.hash(new)
    with _proven(site, staff.name, password, code, address) as (tx, row):
        row.password_hash = hashed
        end_all(tx, staff_id=row.id)
        tx.add(AuditEntry(staff_id=row.id, action="password changed", subject=row.id))


@contextlib.contextmanager
def _proven(
    site: Site, name: str, password: str, code: str, address: str
) -> Iterator[tuple[Session, Staff]]:
    """The one who has name, password and code, in a write in which the code is used up."""
    name = name.strip().lower()[:64]
    account = f"account:{name}"
    both = f"{account} address:{address}"
    site.limiter.hit(SIGN_IN, BY_ADDRESS, f"address:{address}")
    site.limiter.hit(SIGN_IN, BY_BOTH, both)
    site.limiter.hit(SIGN_IN, BY_ACCOUNT, account)
    with site.database.read() as tx:
        found = tx.scalar(select(Staff).where(Staff.name == name))
    hashed = _NOBODY if found is None else found.password_hash
    right = len(password) <= MAX_PASSWORD and _hasher.verify(password[:MAX_PASSWORD], hashed)
    if found is None or found.disabled or not right:
        raise SignInRefusedError
    try:
        site.limiter.hit("staff code", BY_CODE, account)
    except TooManyError:
        raise SignInRefusedError from None  # that the password was right is not told
    with site.database.begin() as tx:
        staff = tx.get(Staff, found.id)
        step = None if staff is None else _step(site.key, staff, code)
        if staff is None or staff.disabled or step is None:
            raise SignInRefusedError
        staff.totp_step = step
        yield tx, staff
    site.limiter.forgive(SIGN_IN, BY_BOTH, both)
    site.limiter.forgive("staff code", BY_CODE, account)


def _step(key: SiteKey, staff: Staff, code: str) -> int | None:
    """The time step that ``code`` belongs to, if it is a fresh one."""
    code = code.replace(" ", "")
    if not re.fullmatch(r"[0-9]{6}", code):
        return None
    totp = pyotp.TOTP(key.decrypt(TOTP_PURPOSE, staff.totp_secret), interval=STEP_S)
    now = int(time.time()) // STEP_S
    for step in (now - 1, now, now + 1):
        if step > staff.totp_step and pyotp.utils.strings_equal(totp.generate_otp(step), code):
            return step
    return None
