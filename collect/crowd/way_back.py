"""A code by which somebody without a card comes back to what there is of them, at any time.

It is made of the participant's id and the site's key and kept nowhere: four bytes find the row, six
prove that this site made it. Whoever has it is that participant, so it is shown to them alone.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.keys import SiteKey
from collect.crowd.tables import Participant

__all__ = ["MAX_TYPED", "code_of", "find"]

PURPOSE = "way back"
ID_BYTES = 4
PROOF_BYTES = 6
MAX_TYPED = 40  # the code is 16 letters and digits, in groups of four


def code_of(key: SiteKey, participant: Participant) -> str:
    """A participant's code, such as ``KXJ2-7QWM-ABCD-EFGH``; the same each time."""
    return "-".join(re.findall("....", base64.b32encode(_told(key, participant)).decode()))


def find(tx: Session, key: SiteKey, typed: str) -> Participant | None:
    """Whose code this is, however it is cased and spaced; None of nobody, or of who was erased."""
    letters = re.sub("[^0-9A-Za-z]", "", typed[:MAX_TYPED])
    try:
        told = base64.b32decode(letters, casefold=True, map01="I")
    except binascii.Error:
        return None
    if len(told) != ID_BYTES + PROOF_BYTES:
        return None
    candidates = tx.scalars(
        select(Participant).where(
            Participant.id.startswith(told[:ID_BYTES].hex()), Participant.erased_at.is_(None)
        )
    )
    return next((row for row in candidates if hmac.compare_digest(_told(key, row), told)), None)


def _told(key: SiteKey, participant: Participant) -> bytes:
    proof = key.mac(PURPOSE, participant.id)[: 2 * PROOF_BYTES]
    return bytes.fromhex(participant.id[: 2 * ID_BYTES] + proof)
