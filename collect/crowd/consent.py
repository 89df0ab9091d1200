"""Consent: what participants agree to, by version and scope, and what of it still holds.

Scopes are taken back one by one and never deleted; a later version of the text asks again. Who
agrees to less than before has taken the rest back from earlier visits too: the latest answer is
the one that holds.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd.tables import Consent, ConsentText, Participant, utc_now
from robot_stack.errors import RobotStackError

__all__ = [
    "REQUIRED",
    "RESEARCH",
    "SCOPES",
    "ConsentError",
    "add",
    "blocks",
    "covers",
    "current",
    "current_version",
    "give",
    "install_default",
    "outdated",
    "read_texts",
    "shipped",
    "valid",
    "withdraw",
    "withdraw_again",
]

SCOPES = ("record", "research", "clips")
REQUIRED = "record"  # nobody plays without
RESEARCH = "research"  # nothing leaves the site without
DEFAULT = Path(__file__).parent / "texts" / "consent.yaml"
MAX_VERSION = 16
MAX_TITLE = 200
MAX_BODY = 20_000

Block = tuple[Literal["heading", "paragraph", "list"], Sequence[str]]


class ConsentError(RobotStackError):
    """There is no text to agree to, or what was agreed to can't be taken; nothing was written."""


def current_version(tx: Session, now: dt.datetime | None = None) -> str:
    """The newest version that is in force; ConsentError when the site has none."""
    version = tx.scalar(
        select(ConsentText.version)
        .where(ConsentText.active_from <= (now or utc_now()))
        .order_by(ConsentText.active_from.desc(), ConsentText.version.desc())
        .limit(1)
    )
    if version is None:
        raise ConsentError(
            "the site has no consent text in force; `robot-stack crowd migrate` installs the "
            "default one, `robot-stack crowd consent add FILE.yaml` yours"
        )
    return version


def current(tx: Session, language: str, now: dt.datetime | None = None) -> ConsentText:
    """The text in force in ``language``, else in English, else in whatever there is."""
    version = current_version(tx, now)
    texts = tx.scalars(select(ConsentText).where(ConsentText.version == version)).all()
    preferred = {language: 0, "en": 1}
    return min(texts, key=lambda text: (preferred.get(text.language, 2), text.language))


def give(
    tx: Session,
    participant: Participant,
    version: str,
    language: str,
    scopes: Iterable[str],
    now: dt.datetime | None = None,
) -> Consent:
    """Keep that a participant has agreed to ``scopes`` of the text that it was shown.

    The same answer again is the same consent. What an earlier consent had and this one lacks is
    withdrawn from that. ConsentError for another version than the one in force (the text has
    changed while it was read), unknown scopes, or without `record`.
    """
    now = now or utc_now()
    given = set(scopes)
    if unknown := given - set(SCOPES):
        raise ConsentError(f"no scope is called {min(unknown)!r}; there are {', '.join(SCOPES)}")
    if REQUIRED not in given:
        raise ConsentError("nobody can play without the scope `record`: it is what is recorded")
    if tx.get_one(Participant, participant.id).erased_at is not None:
        raise ConsentError("who was erased can't consent")
    if tx.get(ConsentText, (version, language)) is None or version != current_version(tx, now):
        raise ConsentError(
            f"consent version {version!r} in {language!r} isn't in force; show the current one"
        )
    before = valid(tx, participant, now)
    if before is not None and before.language == language and _scopes(before) == given:
        return before
    if dropped := set(SCOPES) - given:
        withdraw(tx, participant, dropped, now)
    consent = Consent(
        participant_id=participant.id,
        version=version,
        language=language,
        scopes=[scope for scope in SCOPES if scope in given],
        given_at=now,
    )
    tx.add(consent)
    _answered(tx, participant, RESEARCH in given)
    return consent


def valid(tx: Session, participant: Participant, now: dt.datetime | None = None) -> Consent | None:
    """The newest consent of a participant to the text in force, if its recording still holds."""
    version = current_version(tx, now)
    newest = tx.scalars(
        select(Consent)
        .where(
            Consent.participant_id == participant.id,
            Consent.version == version,
            Consent.withdrawn_at.is_(None),
        )
        .order_by(Consent.given_at.desc(), Consent.id)
    )
    return next((consent for consent in newest if covers(consent, REQUIRED)), None)


def covers(consent: Consent, scope: str, at: dt.datetime | None = None) -> bool:
    """Whether ``scope`` was given, by the moment ``at``, and is not withdrawn now."""
    return scope in _scopes(consent) and (at is None or consent.given_at <= at)


def withdraw(
    tx: Session,
    participant: Participant,
    scopes: Iterable[str],
    now: dt.datetime | None = None,
) -> list[Consent]:
    """Take scopes back from every consent that has them; those that changed.

    Without `record` nothing is left, so that takes back all. What was recorded under it is the
    business of `collect.crowd.data_rights.withdraw`, which calls this.
    """
    wanted = set(scopes)
    if unknown := wanted - set(SCOPES):
        raise ConsentError(f"no scope is called {min(unknown)!r}; there are {', '.join(SCOPES)}")
    now = now or utc_now()
    if REQUIRED in wanted:
        wanted = set(SCOPES)
    given = tx.scalars(select(Consent).where(Consent.participant_id == participant.id))
    changed = [consent for consent in given if _take_back(consent, wanted, now)]
    if RESEARCH in wanted:
        _answered(tx, participant, research=False)
    tx.flush()
    return changed


def withdraw_again(tx: Session, consent_id: str, withdrawn: Mapping[str, dt.datetime]) -> bool:
    """Take back what was taken back of one consent, as `Consent.withdrawn` of elsewhere names it: a
    database that was brought back from a backup has it still. False when it hasn't."""
    consent = tx.get(Consent, consent_id)
    if consent is None:
        return False
    changed = sum(_take_back(consent, {scope}, when) for scope, when in withdrawn.items()) > 0
    who = tx.get_one(Participant, consent.participant_id)
    tx.flush()
    given = tx.scalars(select(Consent).where(Consent.participant_id == who.id))
    _answered(tx, who, any(covers(row, RESEARCH) for row in given))
    return changed


def blocks(body: str) -> list[Block]:
    """A text's parts, for a page: (`heading` | `paragraph`, [text]) or (`list`, [items]).

    Parts are separated by empty lines; a line that begins with ``# `` is a heading, lines with
    ``- `` are a list. Nothing else means anything.
    """
    parts: list[Block] = []
    for part in body.strip().split("\n\n"):
        lines = [line.strip() for line in part.strip().splitlines()]
        if lines and lines[0].startswith("# "):
            parts.append(("heading", [lines.pop(0).removeprefix("# ")]))
        if lines and lines[0].startswith("- "):
            items: list[str] = []
            for line in lines:
                if line.startswith("- "):
                    items.append(line.removeprefix("- "))
                else:
                    items[-1] += " " + line
            parts.append(("list", items))
        elif lines:
            parts.append(("paragraph", [" ".join(lines)]))
    return parts


def read_texts(path: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """Version and {language: (title, body)} of a YAML file; ConsentError says what is wrong."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsentError(f"cannot read {path}: {error}") from error
    wanted = "`version: '2'` and `texts: {en: {title, body}, de: {title, body}}`"
    if not isinstance(content, dict) or set(content) != {"version", "texts"}:
        raise ConsentError(f"{path} must have {wanted} and nothing else")
    version = str(content["version"])
    if not version.isascii() or not 1 <= len(version) <= MAX_VERSION or " " in version:
        raise ConsentError(f"{path}: version {version!r} must be 1 to {MAX_VERSION} letters")
    texts = content["texts"]
    if not isinstance(texts, dict) or not texts:
        raise ConsentError(f"{path} must have {wanted}")
    return version, {str(name): _text(path, str(name), text) for name, text in texts.items()}


def add(
    tx: Session,
    version: str,
    texts: Mapping[str, tuple[str, str]],
    active_from: dt.datetime | None = None,
) -> None:
    """A new version, in force from ``active_from`` (now) on; everybody is asked again then.

    ConsentError for a version that exists: somebody may have agreed to those very words; and for a
    moment that isn't later than that of every other version, which would then stay in force.
    """
    active_from = active_from or utc_now()
    if tx.scalar(select(ConsentText.version).where(ConsentText.version == version).limit(1)):
        raise ConsentError(
            f"there is a consent version {version!r} already, and its words can't change: people "
            "have agreed to them. Give the new text a new version"
        )
    last = tx.scalar(select(func.max(ConsentText.active_from)))
    if last is not None and active_from <= last:
        raise ConsentError(
            f"version {version!r} must be in force later than the others, after {last:%Y-%m-%d}"
        )
    digest = _digest(shipped())
    for language, (title, body) in texts.items():
        tx.add(
            ConsentText(
                shipped=digest,
                version=version,
                language=language,
                title=title,
                body=body,
                active_from=active_from,
            )
        )
    tx.flush()


def install_default(tx: Session) -> bool:
    """The text that comes with the site, when there is none; whether it was needed."""
    if tx.scalar(select(ConsentText.version).limit(1)) is not None:
        return False
    add(tx, *read_texts(DEFAULT))
    return True


@functools.cache
def shipped() -> dict[str, tuple[str, str]]:
    """The text that comes with the site: {language: (title, body)}."""
    return read_texts(DEFAULT)[1]


def outdated(tx: Session) -> str | None:
    """What to tell staff when the text that comes with the site is news to it: the one in force is
    another, and no version was added since it came. None when there is nothing to tell.

    Who adds a version of their own has had that text before them.
    """
    texts = tx.scalars(select(ConsentText)).all()
    now = shipped()
    kept: dict[str, dict[str, tuple[str, str]]] = {}
    for text in texts:
        kept.setdefault(text.version, {})[text.language] = (text.title, text.body)
    if not texts or now in kept.values() or _digest(now) in {text.shipped for text in texts}:
        return None
    return (
        "the consent text that comes with the site has changed: `robot-stack crowd consent show "
        "--shipped` shows it; the one in force stays until you `consent add` another version"
    )


def _digest(texts: Mapping[str, tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _answered(tx: Session, participant: Participant, research: bool) -> None:
    """Whether somebody agrees to research now; also for the row that the caller has at hand."""
    row = tx.get_one(Participant, participant.id)
    row.no_research = participant.no_research = not research
    tx.flush()


def _scopes(consent: Consent) -> set[str]:
    """What of a consent holds now."""
    if consent.withdrawn_at is not None:
        return set()
    return set(consent.scopes) - set(consent.withdrawn)


def _take_back(consent: Consent, wanted: set[str], now: dt.datetime) -> bool:
    """Whether a consent had any of the scopes until now."""
    held = _scopes(consent)
    if not held & wanted:
        return False
    stamp = now.isoformat(timespec="seconds")
    consent.withdrawn = consent.withdrawn | dict.fromkeys(sorted(held & wanted), stamp)
    if not held - wanted:
        consent.withdrawn_at = now
    return True


def _text(path: Path, language: str, text: Any) -> tuple[str, str]:
    if not isinstance(text, dict) or set(text) != {"title", "body"}:
        raise ConsentError(f"{path}: texts.{language} must have `title` and `body`")
    title, body = str(text["title"]).strip(), str(text["body"]).strip()
    if not 1 <= len(title) <= MAX_TITLE or not 1 <= len(body) <= MAX_BODY:
        raise ConsentError(
            f"{path}: texts.{language} must have a title of 1 to {MAX_TITLE} characters and a body "
            f"of 1 to {MAX_BODY}; they have {len(title)} and {len(body)}"
        )
    return title, body
