"""Nicknames: cleaned, compared by how they look, moderated before others see them.

Two names that a visitor could take for one another have one `skeleton`, which is unique in the
database. It follows the idea of Unicode's UTS 39 (skeletons of confusables), by the tables of
`confusable-homoglyphs`, and is coarser: case, spaces, punctuation and accents don't count either.
"""

from __future__ import annotations

import functools
import re
import secrets
import unicodedata
from pathlib import Path

from confusable_homoglyphs.categories import unique_aliases
from confusable_homoglyphs.confusables import confusables_data
from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.tables import NicknameCase, Participant, utc_now
from robot_stack.errors import RobotStackError

__all__ = [
    "MAX_NAME",
    "MIN_NAME",
    "NameRefusedError",
    "clean",
    "decide",
    "flagged",
    "new_pseudonym",
    "public_name",
    "rename",
    "skeleton",
]

MIN_NAME = 2
MAX_NAME = 24
MAX_INPUT = 200  # characters that are looked at before anything costly is done with them
MAX_MARKS = 2  # accents on one letter; Vietnamese and Devanagari need two
PUNCTUATION = " -_.'"
# Letters to Unicode and nothing to the eye.
INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5")
# Japanese and Korean are written in several scripts at once.
TOGETHER = (
    frozenset({"HAN", "HIRAGANA", "KATAKANA"}),
    frozenset({"HAN", "HANGUL"}),
)
NEUTRAL = frozenset({"COMMON", "INHERITED"})
# What looks alike within ASCII, in sans-serif type on a screen across a room.
ASCII_ALIKE = (("0", "o"), ("1", "l"), ("i", "l"), ("5", "s"), ("rn", "m"), ("vv", "w"))
WORDS = Path(__file__).parent / "words"


class NameRefusedError(RobotStackError):
    """A nickname that can't be taken. ``code`` is for the page's texts: short, long, characters,
    scripts, reserved, taken."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def clean(text: str) -> str:
    """``text`` as a nickname: NFKC, single spaces, 2 to 24 letters, digits and `` -_.'``.

    NameRefusedError says why not: among others for invisible characters, mixed scripts and names
    in another script that can't be told from a Latin one.
    """
    if len(text) > MAX_INPUT:
        raise NameRefusedError("long", f"a nickname has {MAX_NAME} characters at most")
    name = " ".join(unicodedata.normalize("NFKC", text).split(" ")).strip(" ")
    name = re.sub(" +", " ", name)
    marks = 0
    for character in name:
        category = unicodedata.category(character)
        marks = marks + 1 if category.startswith("M") else 0
        allowed = category[0] == "L" or category in ("Nd", "Mn", "Mc") or character in PUNCTUATION
        if not allowed or character in INVISIBLE or marks > MAX_MARKS:
            raise NameRefusedError(
                "characters", "a nickname has letters, digits, spaces and - _ . ' only"
            )
    if len(name) > MAX_NAME:
        raise NameRefusedError("long", f"a nickname has {MAX_NAME} characters at most")
    form = skeleton(name)
    if len(form) < MIN_NAME or not any(character.isalpha() for character in name):
        raise NameRefusedError("short", f"a nickname has {MIN_NAME} letters or digits at least")
    _check_scripts(name)
    if form in _reserved():
        raise NameRefusedError("reserved", "this nickname could be taken for the staff's")
    return name


def skeleton(name: str) -> str:
    """What ``name`` looks like: equal for names that differ in case, spaces, punctuation, accents,
    invisible characters or letters that look alike. Two passes change nothing more."""
    folded = _fold(name[:MAX_INPUT])
    # A look-alike may itself fold to something else; in the tables two rounds are the most.
    for _ in range(4):
        again = _fold("".join(_look(character) for character in folded))
        if again == folded:
            break
        folded = again
    # Pairs look alike ("rn") whatever stood between them and goes.
    form = "".join(character for character in folded if character.isalnum())
    for alike, as_what in ASCII_ALIKE:
        form = form.replace(alike, as_what)
    return form


def flagged(name: str, languages: tuple[str, ...] | list[str]) -> bool:
    """Whether a word of the lists of ``languages`` (or of English) is in ``name``.

    Flagged names wait for staff like all others, but at the head of their queue.
    """
    form = skeleton(name)
    words = {skeleton(word) for word in re.split(r"[ \-_.']+", name)}
    for language in {"en", *languages}:
        anywhere, whole = _word_list(language)
        if form in whole or words & whole or any(word in form for word in anywhere):
            return True
    return False


def rename(
    tx: Session, participant: Participant, text: str, languages: tuple[str, ...] | list[str]
) -> str:
    """Give a participant the nickname ``text`` (pending, with a case for staff); the clean name.

    In a write transaction. NameRefusedError ``taken`` when another one's looks the same. The same
    name again changes nothing; one that staff refused stays refused.
    """
    name = clean(text)
    if participant.nickname == name:
        return name
    form = skeleton(name)
    taken = tx.scalar(
        select(Participant.id).where(Participant.skeleton == form, Participant.id != participant.id)
    )
    if taken is not None or form in _pseudonym_forms(tx, form, participant):
        raise NameRefusedError("taken", "somebody has this nickname, or one that looks like it")
    participant.nickname = name
    participant.skeleton = form
    participant.nickname_state = "pending"
    reason = "word list" if flagged(name, languages) else "new"
    tx.add(NicknameCase(participant_id=participant.id, nickname=name, reason=reason))
    tx.flush()
    return name


def decide(tx: Session, case: NicknameCase, *, approved: bool, staff_id: str) -> None:
    """What staff say of a nickname. A case of a name that is no longer borne decides nothing."""
    case.approved = approved
    case.decided_at = utc_now()
    case.decided_by = staff_id
    participant = tx.get(Participant, case.participant_id)
    if participant is not None and participant.nickname == case.nickname:
        participant.nickname_state = "approved" if approved else "refused"
    tx.flush()


def public_name(participant: Participant) -> str:
    """What others see: the nickname once staff have approved it, else the pseudonym."""
    if participant.nickname is not None and participant.nickname_state == "approved":
        return participant.nickname
    return participant.pseudonym


def new_pseudonym(tx: Session) -> str:
    """A pseudonym that nobody has, such as "Amber Otter 4821". In a write transaction."""
    while True:
        first, second = (secrets.choice(_words(kind)) for kind in ("adjectives", "animals"))
        pseudonym = f"{first} {second} {1000 + secrets.randbelow(9000)}"
        used = tx.scalar(
            select(Participant.id).where(
                (Participant.pseudonym == pseudonym) | (Participant.skeleton == skeleton(pseudonym))
            )
        )
        if used is None:
            return pseudonym


def _pseudonym_forms(tx: Session, form: str, participant: Participant) -> set[str]:
    """Skeletons of others' pseudonyms, where ``form`` has the shape of one."""
    match = _pseudonym_shape().fullmatch(form)
    if match is None:
        return set()
    others = tx.scalars(select(Participant.pseudonym).where(Participant.id != participant.id))
    return {skeleton(pseudonym) for pseudonym in others}


@functools.cache
def _pseudonym_shape() -> re.Pattern[str]:
    first = "|".join(sorted({skeleton(word) for word in _words("adjectives")}))
    second = "|".join(sorted({skeleton(word) for word in _words("animals")}))
    return re.compile(rf"(?:{first})(?:{second})[0-9ols]+")


def _check_scripts(name: str) -> None:
    scripts = set(unique_aliases(name)) - NEUTRAL
    if len(scripts) > 1 and not any(scripts <= together for together in TOGETHER):
        raise NameRefusedError("scripts", "a nickname is written in one alphabet")
    # Capital nu looks like N and small nu like v: by case a Greek name looks like one Latin name
    # or another, and its skeleton is that of the small letters.
    if "LATIN" not in scripts and any(_look(c) != _look(c.casefold()) for c in name):
        as_typed = "".join(_look(character) for character in name if character.isalnum())
        if as_typed.isascii():
            raise NameRefusedError("scripts", "write this nickname in small letters")


def _fold(text: str) -> str:
    """Case, compatibility forms and accents gone."""
    for _ in range(2):
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return text


@functools.cache
def _look(character: str) -> str:
    """The ASCII character (in lower case) that ``character`` looks like, or the first of those
    that look alike."""
    if character.isascii():
        return character.lower()
    for form in (character, character.upper()):
        if len(form) != 1:
            continue
        alike = {glyph["c"] for glyph in confusables_data.get(form, ()) if len(glyph["c"]) == 1}
        plain = sorted(c.lower() for c in alike if c.isascii() and c.isalnum())
        if plain:
            return str(plain[0])
    alike = {glyph["c"] for glyph in confusables_data.get(character, ()) if len(glyph["c"]) == 1}
    letters = [c for c in alike if c.isalnum()]
    return str(min([character, *letters]))


@functools.cache
def _words(kind: str) -> tuple[str, ...]:
    path = WORDS / f"{kind}.txt"
    return tuple(path.read_text().split()) if path.exists() else ()


@functools.cache
def _reserved() -> frozenset[str]:
    return frozenset(skeleton(word) for word in _words("reserved"))


@functools.cache
def _word_list(language: str) -> tuple[frozenset[str], frozenset[str]]:
    """Skeletons of ``words/<language>.txt``: those bad anywhere in a name, and whole words only
    (lines that begin with ``=``). A language without a list has none."""
    lines = _words(language)
    anywhere = frozenset(skeleton(line) for line in lines if not line.startswith("="))
    whole = frozenset(skeleton(line[1:]) for line in lines if line.startswith("="))
    return anywhere, whole
