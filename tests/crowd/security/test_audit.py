"""Known holes of what the site is built on: `make audit` asks for them, where there is a network.

Whether an index answers is not this project's fault, so no test asks one; what is tested is that
the command line is right, and that what it looks at is what is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FACING = ("fastapi", "starlette", "uvicorn", "jinja2", "python-multipart", "sqlalchemy", "h5py")


def _recipe() -> str:
    """What `make audit` would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "audit"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.replace("\\\n", " ")


def test_make_audit_looks_at_what_is_pinned() -> None:
    recipe = next(line for line in _recipe().splitlines() if "pip-audit" in line)
    source, _, audit = recipe.partition("|")
    assert source.split()[0] == "sed" and source.split()[-1] == "constraints.txt"
    program, *arguments = audit.split()
    assert Path(program).name == "pip-audit"
    assert "--requirement /dev/stdin" in audit
    assert "--strict" in arguments  # or an index that does not answer is a success
    assert "--no-deps" in arguments  # all of them are pinned: nothing is resolved or built
    known = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--help"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    for option in (word for word in arguments if word.startswith("--")):
        assert option in known, option


def test_what_is_pinned_is_what_is_installed() -> None:
    pinned = {
        match[1].lower().replace("_", "-"): match[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if (match := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line))
    }
    for name in FACING:
        assert pinned[name] == version(name), name
