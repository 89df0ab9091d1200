"""Episode files that stations bring: taken up whole, checked, and confined to their directory.

A file is written under a temporary name below ``episodes/.incoming`` and becomes
``episodes/<station>/<play>.hdf5`` when its size, its SHA-256 and HDF5's signature are right. A
station that can write into that directory itself tells its path instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from robot_stack.errors import RobotStackError

__all__ = [
    "UploadError",
    "clear_leftovers",
    "confined",
    "episode_path",
    "incoming",
    "keep",
    "receive",
    "told",
]

SIGNATURE = b"\x89HDF\r\n\x1a\n"  # HDF5 File Format Specification, II.A
CHUNK = 1 << 20
ROOM = 1 << 30  # bytes that stay free on the site's disk
LEFTOVER_S = 86400.0


class UploadError(RobotStackError):
    """A file is not what it should be; ``status`` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def episode_path(station: str, play: str) -> str:
    """Where the episode of a play, by its id, at a station, by its name, is kept below the site's
    episodes."""
    return f"{station}/{play}.hdf5"


def confined(episodes: Path, relative: str | None) -> Path | None:
    """Where the file of a play is; None when it has none, or would have it outside of the site's
    episodes."""
    if relative is None:
        return None
    path = episodes / relative
    return path if path.resolve().is_relative_to(episodes.resolve()) else None


def incoming(episodes: Path) -> Path:
    """Where files are while they come."""
    return episodes / ".incoming"


def clear_leftovers(episodes: Path) -> None:
    """Remove what uploads that were cut off have left, a day later."""
    if incoming(episodes).is_dir():
        for path in incoming(episodes).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                if time.time() - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink()


@contextlib.asynccontextmanager
async def receive(
    chunks: AsyncIterator[bytes], episodes: Path, play_id: str, *, size: int, sha256: str
) -> AsyncIterator[Path]:
    """Write a file that comes in chunks to a temporary name, which is gone when the block ends.

    UploadError when it isn't of this size and hash, is no HDF5, or there is no room for it.
    """
    folder = incoming(episodes)
    await run_in_threadpool(_prepare, folder, size)
    path = folder / f"{play_id}.{secrets.token_hex(8)}"
    try:
        await _write(chunks, path, size, sha256)
        yield path
    finally:
        path.unlink(missing_ok=True)


def keep(part: Path, episodes: Path, relative: str) -> None:
    """Give a received file its name; it is on the disk when this returns."""
    target = episodes / relative
    target.parent.mkdir(mode=0o750, exist_ok=True)
    part.replace(target)
    for folder in (target.parent, episodes):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def told(episodes: Path, relative: str, wanted: str, *, size: int | None, sha256: str) -> None:
    """Check a file that a station says it has put at ``relative`` itself, where ``wanted`` is where
    it belongs. UploadError when it is elsewhere, no plain file, or not of this size and hash."""
    if relative != wanted:
        raise UploadError(400, f"the episode of this play belongs at {wanted}")
    path = episodes / relative
    if path.resolve() != episodes.resolve() / wanted:
        raise UploadError(400, "links don't count as episodes")
    try:
        # Not waiting for who might open a pipe at its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UploadError(409, f"there is no file {wanted} here yet: {error.strerror}") from error
    digest = hashlib.sha256()
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UploadError(400, f"{wanted} is no plain file")
        first = file.read(len(SIGNATURE))
        if first != SIGNATURE:
            raise UploadError(422, f"{wanted} is no HDF5 file")
        if size is not None and os.fstat(file.fileno()).st_size != size:
            raise UploadError(409, f"{wanted} is not of {size} bytes (yet)")
        digest.update(first)
        while block := file.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise UploadError(409, f"{wanted} does not have the hash that was told")


def _prepare(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    if shutil.disk_usage(folder).free < size + ROOM:
        raise UploadError(507, "the site's disk is full")


async def _write(chunks: AsyncIterator[bytes], path: Path, size: int, sha256: str) -> None:
    digest = hashlib.sha256()
    written = 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    with os.fdopen(handle, "wb", buffering=0) as file:
        pending = bytearray()

        def flush() -> None:
            digest.update(pending)
            file.write(pending)
            pending.clear()

        async for chunk in chunks:
            pending += chunk
            written += len(chunk)
            if written > size:
                raise UploadError(413, f"more than the {size} bytes that were announced")
            if written >= len(SIGNATURE) > written - len(chunk) and not _signed(
                bytes(pending[: len(SIGNATURE)])
            ):
                raise UploadError(422, "this is no HDF5 file")
            if len(pending) >= CHUNK:
                await run_in_threadpool(flush)
        await run_in_threadpool(flush)
        if written != size:
            raise UploadError(400, f"{written} of {size} bytes came")
        if written < len(SIGNATURE):
            raise UploadError(422, "this is no HDF5 file")
        if digest.hexdigest() != sha256:
            raise UploadError(422, "the hash is another one: it was changed on the way")
        await run_in_threadpool(os.fsync, file.fileno())


def _signed(first: bytes) -> bool:
    return first == SIGNATURE
