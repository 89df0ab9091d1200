"""What is known about a whole episode, kept in the file in two checksummed slots.

The slots live in the dataset ``/metadata``, uint8 ``(2, SLOT_BYTES)``: each holds ``crc32`` (eight
hexadecimal digits), a space, JSON, and zeros. The slot with the higher ``revision`` and a right
checksum counts. A change writes the other slot in place, without HDF5, so neither a kill while a
recording is closed nor one while it is relabelled can lose more than that change.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robot_stack.clock import boot_id
from robot_stack.errors import EpisodeError

__all__ = ["SCHEMA_VERSION", "SLOT_BYTES", "EpisodeMetadata", "decode_slots", "encode_slot"]

SCHEMA_VERSION = 1
SLOT_BYTES = 65536


@dataclass(frozen=True, slots=True)
class EpisodeMetadata:
    """One episode in words and numbers; None (or an empty mapping) where something is unknown.

    ``success`` is True, False or None (nobody has said), ``labeller`` who or what said so.
    ``operator`` is a pseudonym. ``robots`` maps each robot to its embodiment, serial number, joint
    names, units and limits; ``cameras`` each camera to its size, rate, serial number and
    intrinsics; ``frames`` each camera to its counts (see ``collect.recorder``). ``action`` says
    what a row of ``/action`` means. ``ended`` is why recording ended: ``stopped``, ``disk_full``,
    ``recovered`` or None while it runs. ``wall_offset_ns`` added to any ``t_ns`` of the file gives
    Unix time. ``streams`` holds the SHA-256 of each dataset, ``content_hash`` the one of them all
    (see ``digest``). ``extra`` is for what a lab adds.
    """

    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    schema_version: int = SCHEMA_VERSION
    revision: int = 0
    created: str = field(
        default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))
    )
    boot_id: str = field(default_factory=boot_id)
    wall_offset_ns: int = field(default_factory=lambda: time.time_ns() - time.monotonic_ns())
    parent: str | None = None
    success: bool | None = None
    labeller: str | None = None
    failure_tag: str | None = None
    operator: str | None = None
    role: str | None = None
    consent: str | None = None
    incentive: str | None = None
    station: str | None = None
    session: str | None = None
    task_id: str | None = None
    task: str | None = None
    language: str | None = None
    robots: Mapping[str, Any] = field(default_factory=dict)
    cameras: Mapping[str, Any] = field(default_factory=dict)
    action: Mapping[str, Any] = field(default_factory=dict)
    gains: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    reset_type: str | None = None
    human_seconds: float | None = None
    interventions: int | None = None
    ended: str | None = None
    rows: int | None = None
    frames: Mapping[str, Any] = field(default_factory=dict)
    streams: Mapping[str, str] = field(default_factory=dict)
    content_hash: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> EpisodeMetadata:
        """A copy with some fields changed; EpisodeError names a field that does not exist."""
        known = {item.name for item in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise EpisodeError(
                    f"episode metadata has no field {name!r}; it has {', '.join(sorted(known))}; "
                    "put what is your own into `extra`"
                )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpisodeMetadata:
        """Read what ``to_dict`` gave; fields of a newer version are kept in ``extra``."""
        if int(values.get("schema_version", 0)) < 1:
            raise EpisodeError("these are not the metadata of an episode: no schema_version")
        known = {item.name for item in dataclasses.fields(cls)}
        extra = dict(values.get("extra", {}))
        extra.update({k: v for k, v in values.items() if k not in known})
        return cls(**{k: v for k, v in values.items() if k in known and k != "extra"}, extra=extra)


def encode_slot(metadata: EpisodeMetadata) -> bytes:
    """One slot, SLOT_BYTES long; EpisodeError when the metadata do not fit or are not JSON."""
    try:
        body = json.dumps(metadata.to_dict(), allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise EpisodeError(
            f"episode metadata must be JSON (numbers, text, lists, mappings): {error}"
        ) from error
    slot = b"%08x " % zlib.crc32(body) + body
    if len(slot) > SLOT_BYTES:
        raise EpisodeError(
            f"episode metadata take {len(slot)} bytes of {SLOT_BYTES}; shorten `extra` or `gains`"
        )
    return slot.ljust(SLOT_BYTES, b"\0")


def _decode(slot: bytes) -> EpisodeMetadata | None:
    text = slot.rstrip(b"\0")
    body = text[9:]
    if not body or text[:9] != b"%08x " % zlib.crc32(body):
        return None
    return EpisodeMetadata.from_dict(json.loads(body))


def decode_slots(data: bytes) -> tuple[int, EpisodeMetadata]:
    """(index of the slot that counts, its content); EpisodeError when neither is whole."""
    found = [
        (i, metadata)
        for i in (0, 1)
        if (metadata := _decode(data[i * SLOT_BYTES : (i + 1) * SLOT_BYTES])) is not None
    ]
    if not found:
        raise EpisodeError("neither copy of the episode's metadata is whole")
    return max(found, key=lambda item: item[1].revision)


def write_next(fd: int, offset: int, metadata: EpisodeMetadata) -> EpisodeMetadata:
    """Write ``metadata`` as the next revision into the slot that does not count, and sync it.

    ``offset`` is where the data of ``/metadata`` start in the file.
    """
    slot, current = decode_slots(os.pread(fd, 2 * SLOT_BYTES, offset))
    fresh = metadata.replace(revision=current.revision + 1)
    os.pwrite(fd, encode_slot(fresh), offset + (1 - slot) * SLOT_BYTES)
    os.fdatasync(fd)
    return fresh
