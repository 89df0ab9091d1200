"""A private PostgreSQL server: its own directory, a socket and no port, gone with the tests."""

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

# A server for tests: what a crash would lose is nothing.
SETTINGS = (
    "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off "
    "-c max_connections=200 -c shared_buffers=32MB -c autovacuum=off"
)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    which = shutil.which("pg_ctl")
    if which is not None:
        return Path(which).parent
    assert found, "these tests need a PostgreSQL server: `apt-get install postgresql`"
    return found[-1].parent


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """A running server; yields the URL of its maintenance database.

    PostgreSQL refuses to run as root, so that root starts it as the user `postgres`.
    """
    programs = _programs()
    root = os.geteuid() == 0
    command = ["runuser", "-u", "postgres", "--"] if root else []
    user = "postgres" if root else pwd.getpwuid(os.geteuid()).pw_name
    # Directly in the temporary directory: a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="crowd-pg-"))
    try:
        if root:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        _run(command, programs / "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} {SETTINGS}"
        log = folder / "log"
        try:
            _run(command, programs / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
            yield f"postgresql+psycopg://{user}@/postgres?host={folder}"
        finally:
            _run(command, programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], *arguments: object) -> None:
    # No pipes: the server would inherit them and communicate() would wait for its end.
    subprocess.run(
        [*command, *map(str, arguments)],
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
