"""`robot-stack crowd export`: the site's recordings as a dataset that may be given away.

    DIR/manifest.json            counts, hashes, what every column means, an entry an episode
    DIR/README.md                the datasheet
    DIR/episodes/UUID.hdf5       the recording (see docs/data-format.md)
    DIR/labels/UUID.parquet      what reviewers say of each of its rows
    DIR/consent/1.en.txt         what the contributors have agreed to

Everything is made in ``DIR.part`` beside it, which becomes ``DIR`` at the end: there is the whole
of it or nothing. One that was cut short is taken up where it was. Ids of episodes, contributors
and stations are drawn anew each time, and nothing else tells them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd import consent, review
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.export_files import (
    Copied,
    Identity,
    LeftOutError,
    copy_episode,
    digest_of,
    write_labels,
)
from collect.crowd.export_manifest import README, datasheet, manifest_of, ordered
from collect.crowd.export_part import (
    FOLDERS,
    JOURNAL,
    State,
    begin,
    close,
    finished,
    locked,
    record,
    sync,
    tidy,
)
from collect.crowd.export_select import Chosen, Selection, Terms, choose
from collect.crowd.files import confined
from collect.crowd.keys import SiteKey
from collect.crowd.segments import Labels
from collect.crowd.stations import CONTRIBUTOR
from collect.crowd.tables import ConsentText, Play, Station
from collect.crowd.untrusted import open_untrusted
from robot_stack.errors import ConfigError

__all__ = ["Summary", "export", "survey"]

PART = ".part"
METRICS = ("seconds", "path_m", "jerk", "idle_fraction", "collisions", "dropped_frames")
ROOM = 256 << 20  # bytes of the disk that stay free
Progress = Callable[[int, int], None]  # bytes that are done, bytes in all


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export has in it, or would have."""

    episodes: int
    contributors: int
    bytes: int
    left_out: dict[str, int]
    path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


def survey(database: Database, config: CrowdConfig, terms: Terms) -> Summary:
    """What an export would have in it, by the database and the presence of files (their hashes are
    looked at when they are copied)."""
    with database.read() as tx:
        found = choose(tx, terms)
    left_out = Counter(found.left_out)
    size = 0
    people = set()
    count = 0
    for one in found.chosen:
        path = confined(config.episodes, one.play.file)
        if path is None or not path.is_file():
            left_out["file_missing"] += 1
            continue
        count += 1
        size += path.stat().st_size
        people.add(one.participant.id)
    return Summary(count, len(people), size, ordered(left_out))


def export(
    database: Database,
    config: CrowdConfig,
    key: SiteKey,
    target: Path,
    terms: Terms,
    progress: Progress = lambda done, total: None,
) -> Summary:
    """Write the dataset to ``target``, which must not exist. Safe to be killed and run again.

    ConfigError when ``target`` is there, another export works on it, the terms differ from those
    that it was begun with, or the disk has no room.
    """
    target = target.absolute()
    if target.exists():
        raise ConfigError(f"{target} exists; name another directory, or move this one away")
    part = target.with_name(target.name + PART)
    part.mkdir(parents=True, exist_ok=True)
    with locked(part):
        with database.read() as tx:
            found = choose(tx, terms)
        state = begin(part, terms, found.chosen)
        entries, failed = _copy_all(database, config, key, part, state, found, progress)
        # What has changed while it was copied counts: this look is the one that decides.
        with database.read() as tx:
            final = choose(tx, terms)
            allowed = {one.play.id: one for one in final.chosen}
            left_out = Counter(final.left_out)
            left_out.update(reason for play_id, reason in failed.items() if play_id in allowed)
            # A recording that came meanwhile is for the next export.
            kept = {play_id: entries[play_id] for play_id in entries if play_id in allowed}
            tidy(part, kept)
            manifest = manifest_of(tx, terms.as_dict(), kept.values(), ordered(left_out))
            _write_texts(part, tx, manifest)
        close(part)
        part.rename(target)
        sync(target.parent)
    counts = manifest["counts"]
    return Summary(
        counts["episodes"], counts["contributors"], counts["bytes"], ordered(left_out), target
    )


def _copy_all(
    database: Database,
    config: CrowdConfig,
    key: SiteKey,
    part: Path,
    state: State,
    found: Selection,
    progress: Progress,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Entries of the manifest by play, and the reasons of plays whose file can't leave."""
    for folder in FOLDERS:
        (part / folder).mkdir(exist_ok=True)
    chosen = {one.play.id: one for one in found.chosen}
    entries = finished(part, chosen)
    failed: dict[str, str] = {}
    sizes = {play_id: _size(config, one.play) for play_id, one in chosen.items()}
    done, total = sum(sizes[p] for p in sizes if p in entries), sum(sizes.values())
    if shutil.disk_usage(part).free < total - done + ROOM:
        raise ConfigError(
            f"the disk of {part} has no room for {(total - done) / 1e9:.1f} GB more; "
            "choose a directory on another one"
        )
    progress(done, total)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    with (part / JOURNAL).open("a") as journal:
        for play_id, one in chosen.items():
            if play_id in entries:
                continue
            try:
                with database.read() as tx:
                    labels = review.labels(tx, one.play)
                    hidden = _secrets(tx, key, one)
                entry = _one(config, part, state, one, labels, hidden, advance)
            except LeftOutError as error:
                failed[play_id] = error.reason
                continue
            entries[play_id] = entry
            journal.write(record(play_id, one, entry))
            journal.flush()
            os.fsync(journal.fileno())
    return entries, failed


def _one(
    config: CrowdConfig,
    part: Path,
    state: State,
    one: Chosen,
    labels: Labels | None,
    hidden: tuple[str, ...],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    play = one.play
    source = confined(config.episodes, play.file)
    if source is None or play.sha256 is None:
        raise LeftOutError("file_missing")
    identity = Identity(
        uuid=state.names[play.id],
        salt=bytes.fromhex(state.salt),
        contributor=state.names[one.participant.id],
        station=state.names[play.station_id],
        consent=f"version {one.consent.version}: {consent.RESEARCH}",
        secrets=hidden,
    )
    episode = f"episodes/{identity.uuid}.hdf5"
    table = f"labels/{identity.uuid}.parquet"
    copied = copy_episode(source, part / episode, play.sha256, identity, advance)
    with open_untrusted(part / episode) as opened:
        times = opened.t_ns
    try:
        write_labels(part / table, labels, times.tolist())
    except LeftOutError:
        (part / episode).unlink()
        raise
    sync(part / table)
    return _entry(one, identity, copied, episode, table, digest_of(part / table), labels)


def _entry(
    one: Chosen,
    identity: Identity,
    copied: Copied,
    episode: str,
    table: str,
    table_sha256: str,
    labels: Labels | None,
) -> dict[str, Any]:
    """An episode in the manifest, as `export_manifest.COLUMNS` explains it."""
    play, verdict = one.play, one.verdict
    return {
        "file": episode,
        "sha256": copied.sha256,
        "bytes": copied.size,
        "uuid": identity.uuid,
        "contributor": identity.contributor,
        "station": identity.station,
        "task": play.task_id,
        "kind": play.kind,
        "rows": copied.rows,
        "seconds": play.took_s,
        "ended_by": play.ended_by,
        "claimed": play.claimed,
        "checked": play.checked,
        "decision": None if verdict is None else verdict.decision,
        "quality": None if verdict is None else verdict.quality,
        "likert": [play.likert_intuitive, play.likert_fun, play.likert_did],
        "metrics": {k: v for k, v in play.metrics.items() if k in METRICS},
        "consent": one.consent.version,
        "labels": table,
        "labels_sha256": table_sha256,
        "labelled_rows": 0 if labels is None else int((labels.quality >= 0).sum()),
    }


def _write_texts(part: Path, tx: Session, manifest: dict[str, Any]) -> None:
    for text in tx.scalars(select(ConsentText)):
        if text.version in manifest["consent"]:
            path = part / "consent" / f"{_file_name(text.version)}.{text.language}.txt"
            path.write_text(f"{text.title}\n\n{text.body}\n")
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    (part / README).write_text(datasheet(manifest))
    for path in (part / "manifest.json", part / README, *(part / "consent").iterdir()):
        sync(path)


def _secrets(tx: Session, key: SiteKey, one: Chosen) -> tuple[str, ...]:
    """Ids and hashes that no byte of the copy may have."""
    play, participant = one.play, one.participant
    station = tx.get(Station, play.station_id)
    found = [
        play.id,
        participant.id,
        one.consent.id,
        play.station_id,
        key.mac(CONTRIBUTOR, participant.id)[:32],
        participant.card_hash,
        None if station is None else station.token_hash,
    ]
    return tuple(text for text in found if text is not None)


def _size(config: CrowdConfig, play: Play) -> int:
    path = confined(config.episodes, play.file)
    return path.stat().st_size if path is not None and path.is_file() else 0


def _file_name(version: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in version).lstrip(".") or "_"
