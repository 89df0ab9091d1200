"""A private PostgreSQL server for benchmarks and tests: its own directory and socket, no port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["postgresql_server"]

SETTINGS = "-c listen_addresses='' -c max_connections=200 -c shared_buffers=32MB -c autovacuum=off"
# What a crash of a server for tests would lose is nothing.
FORGETFUL = " -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_wal_size=128MB"
# Nor does such a server need a disk: to copy a database takes 0.05 s in memory, and 0.3 s on one.
MEMORY = Path("/dev/shm")
ROOM_BYTES = 1 << 30  # a container's may be 64 MB
AT_THE_END = 'cat; "$@"; rm -rf "$0"'  # of stdin, which ends with whoever holds it


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    which = shutil.which("pg_ctl")
    if which is not None:
        return Path(which).parent
    assert found, "this needs a PostgreSQL server: `apt-get install postgresql`"
    return found[-1].parent


@contextlib.contextmanager
def postgresql_server(*, durable: bool = False) -> Iterator[str]:
    """A running server; yields the URL of its maintenance database. Gone with the block.

    ``durable``: a commit is on the disk, as with anybody's own server. PostgreSQL refuses to
    run as root, so that root starts it as the user `postgres`.
    """
    programs = _programs()
    root = os.geteuid() == 0
    command = ["runuser", "-u", "postgres", "--"] if root else []
    user = "postgres" if root else pwd.getpwuid(os.geteuid()).pw_name
    # Directly in the temporary directory: a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="crowd-pg-", dir=None if durable else _memory()))
    data = folder / "data"
    control = [*command, str(programs / "pg_ctl"), "-D", str(data)]
    # Ends the server when this process does, however that ends.
    ends = [*control, "-m", "immediate", "-w", "stop"]
    with subprocess.Popen(
        ["sh", "-c", AT_THE_END, str(folder), *ends],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    ):
        if root:
            shutil.chown(folder, "postgres")
        initdb = str(programs / "initdb")
        _run([*command, initdb, "-D", str(data), "-A", "trust", "-E", "UTF8", "--no-sync"])
        options = f"-k {folder} {SETTINGS}{'' if durable else FORGETFUL}"
        _run([*control, "-l", str(folder / "log"), "-o", options, "-w", "start"])
        yield f"postgresql+psycopg://{user}@/postgres?host={folder}"


def _memory() -> Path | None:
    """Where files are kept in memory, None where there is too little of it."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        return MEMORY
    return None


def _run(command: list[str]) -> None:
    # No pipes: the server would inherit them and communicate() would wait for its end.
    subprocess.run(
        command,
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
