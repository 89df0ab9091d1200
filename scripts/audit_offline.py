"""pip-audit with advisories from a directory: `make audit ADVISORIES=~/advisory-database`.

For computers that no index answers. The directory is a clone of github.com/pypa/advisory-database,
or anything else of OSV files (YAML or JSON, ossf.github.io/osv-schema). They are served on this
computer's loopback, as api.osv.dev would, while pip-audit runs: it asks and judges, and its exit
status is this one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

Advisory = dict[str, Any]
STALE_DAYS = 30
UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError)
# In OSV's words; of events at one version, what closes a range comes before what opens the next.
EVENTS = ("fixed", "introduced", "last_affected")


class Advisories:
    """All advisories below a directory about packages of PyPI, but those withdrawn.

    ValueError, with the file's name, for what can't be read: silence about it would be taken for
    safety.
    """

    def __init__(self, folder: Path) -> None:
        self._of: dict[str, list[Advisory]] = {}
        self.count = 0
        self.newest = ""
        root = folder / "vulns" if (folder / "vulns").is_dir() else folder
        for path in sorted(root.rglob("*")):
            if path.suffix in (".yaml", ".json") and path.is_file():
                try:
                    self._take(_read(path))
                except UNREADABLE as error:
                    raise ValueError(f"{path} is no OSV advisory: {error}") from error

    def _take(self, advisory: Advisory) -> None:
        self.newest = max(self.newest, advisory.get("published") or advisory["modified"])
        names = set()
        for affected in advisory["affected"]:
            package = affected["package"]
            if package["ecosystem"] == "PyPI":
                package["name"] = canonicalize_name(package["name"])  # pip-audit compares so
                names.add(package["name"])
        if names and not advisory.get("withdrawn"):
            self.count += 1
            for name in names:
                self._of.setdefault(name, []).append(advisory)

    def about(self, name: str, version: str) -> list[Advisory]:
        """Those that affect this version of a package; of torch 2.1+cpu, those of 2.1."""
        name = canonicalize_name(name)
        asked = Version(Version(version).public)
        return [
            advisory
            for advisory in self._of.get(name, [])
            if any(
                affected["package"]["ecosystem"] == "PyPI"
                and affected["package"]["name"] == name
                and _affects(affected, asked)
                for affected in advisory["affected"]
            )
        ]


def _read(path: Path) -> Advisory:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        advisory = json.loads(text)
    else:  # everything as text: else version 1.10 is the number 1.1
        advisory = yaml.load(text, getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    if not isinstance(advisory, dict):
        raise ValueError("it holds no mapping")
    advisory["id"].encode()
    return advisory


def _affects(affected: dict[str, Any], asked: Version) -> bool:
    return any(_version(text) == asked for text in affected.get("versions", ())) or any(
        _in_range(each["events"], asked)
        for each in affected.get("ranges", ())
        if each["type"] == "ECOSYSTEM"  # GIT's are commits; `versions` has what they come to
    )


def _in_range(events: list[dict[str, str]], asked: Version) -> bool:
    """OSV's evaluation. A version that can't be understood is one that may be meant."""
    known = []
    for event in events:
        for kind, text in event.items():
            if kind in EVENTS:
                version = Version("0.dev0") if text == "0" else _version(text)
                if version is None:
                    return True
                known.append((version, EVENTS.index(kind), kind))
    inside = False
    for version, _, kind in sorted(known):
        if kind == "introduced":
            inside = inside or asked >= version
        elif asked > version or (kind == "fixed" and asked == version):
            inside = False
    return inside


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:  # of before PEP 440; nothing that is pinned here has one
        return None


@contextmanager
def served(advisories: Advisories) -> Iterator[str]:
    """The URL at which OSV's query is answered until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = advisories.about(query["package"]["name"], query["version"])
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("advisories", type=Path, help="a directory of OSV files")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="all the rest is pip-audit's")
    args = parser.parse_args()
    try:
        advisories = Advisories(args.advisories)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not advisories.count:
        print(
            f"{args.advisories} has no advisories; a clone of github.com/pypa/advisory-database "
            "is wanted",
            file=sys.stderr,
        )
        return 2
    print(_told(advisories, datetime.now(UTC)), file=sys.stderr)
    with served(advisories) as url:
        command = [sys.executable, "-m", "pip_audit", *args.arguments]
        return subprocess.run(
            [*command, "--vulnerability-service", "osv", "--osv-url", url],
            env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            check=False,
        ).returncode


def _told(advisories: Advisories, now: datetime) -> str:
    """How many advisories there are and how old they are."""
    days = (now - datetime.fromisoformat(advisories.newest)).days
    said = f"{advisories.count} advisories, the newest of {advisories.newest[:10]}"
    if days > STALE_DAYS:
        age = f"{days} days" if days < 730 else f"{days // 365} years"
        said += f": {age} old. Whatever was found since then is not looked for; update the clone"
    return said


if __name__ == "__main__":
    sys.exit(main())
