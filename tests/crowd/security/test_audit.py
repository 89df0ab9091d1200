"""Known holes of what the site is built on: `make audit` asks an index or a directory for them.

Whether an index answers is not this project's fault, so no test asks one; what is tested is that
the command line is right, that what it looks at is what is installed, and that pip-audit finds in a
directory of advisories what is there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FACING = ("fastapi", "starlette", "uvicorn", "jinja2", "python-multipart", "sqlalchemy", "h5py")


def _recipe(*settings: str) -> str:
    """What `make audit` would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "audit", *settings],
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


def test_make_audit_of_a_directory_is_the_same_but_for_who_answers() -> None:
    def arguments(recipe: str, program: str) -> list[str]:
        line = next(line for line in recipe.splitlines() if program in line)
        return line.partition("--strict")[2].split()

    offline = _recipe("ADVISORIES=/a/clone")
    assert "scripts/audit_offline.py /a/clone" in offline
    assert arguments(offline, "audit_offline.py") == arguments(_recipe(), "pip-audit")


def _advisory(folder: Path, number: int, package: str, **more: Any) -> None:
    """One as PyPA keeps them; ``versions`` and ``events`` are of what is affected."""
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": package}}
    if "events" in more:
        affected["ranges"] = [
            {"type": "GIT", "events": [{"introduced": "0"}]},
            {"type": "ECOSYSTEM", "events": more.pop("events")},
        ]
    if "versions" in more:
        affected["versions"] = more.pop("versions")
    values = {"id": f"PYSEC-2024-{number}", "details": "A hole.", "affected": [affected], **more}
    values.setdefault("published", f"2024-10-{number:02d}T20:15:00Z")
    values["modified"] = "2024-10-30T23:22:49.818476Z"
    path = folder / "vulns" / package / f"PYSEC-2024-{number}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values).replace("'1.10'", "1.10"))  # no number all the same


def _audit(folder: Path, pinned: Iterable[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, ROOT / "scripts/audit_offline.py", folder, "--strict", "--no-deps"),
            *("--requirement=/dev/stdin", "--disable-pip", "--progress-spinner=off"),
            "--format=json",
        ],
        input="\n".join(pinned),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def advisories(tmp_path: Path) -> Path:
    def event(**kind: str) -> dict[str, str]:
        return kind

    to_1_10 = [event(introduced="0"), event(fixed="1.10")]
    _advisory(tmp_path, 1, "Listed_Package", versions=["1.2", "1.10", "of old"])
    _advisory(tmp_path, 2, "ranged", events=[event(fixed="1.10"), event(introduced="1.9")])
    _advisory(tmp_path, 3, "last", events=[event(introduced="0"), event(last_affected="2.0")])
    _advisory(tmp_path, 4, "again", events=[*to_1_10, event(introduced="2"), event(fixed="2.1")])
    _advisory(tmp_path, 5, "taken-back", events=to_1_10, withdrawn="2024-10-20T00:00:00Z")
    _advisory(
        tmp_path, 6, "strange", events=[event(introduced="r1-final"), event(last_affected="2")]
    )
    _advisory(tmp_path, 7, "commits", versions=["3.0"], events=to_1_10)
    return tmp_path


def test_pip_audit_finds_what_a_directory_of_advisories_has(advisories: Path) -> None:
    holes = {
        "listed-package==1.10": "PYSEC-2024-1",
        "ranged==1.9.post1": "PYSEC-2024-2",
        "last==2.0": "PYSEC-2024-3",
        "again==2.0.5": "PYSEC-2024-4",
        "strange==1.0": "PYSEC-2024-6",
        "commits==3+cpu": "PYSEC-2024-7",
    }
    done = _audit(advisories, {**holes, "taken-back==1.0": "", "unheard-of==1.0": ""})
    assert done.returncode == 1, done.stderr
    found = {
        f"{each['name']}=={each['version']}": [hole["id"] for hole in each["vulns"]]
        for each in json.loads(done.stdout)["dependencies"]
    }
    assert found == {
        **{package: [hole] for package, hole in holes.items()},
        "taken-back==1.0": [],
        "unheard-of==1.0": [],
    }
    fixes = json.loads(done.stdout)["dependencies"][1]["vulns"][0]["fix_versions"]
    assert fixes == ["1.10"]


def test_an_audit_without_findings_says_how_old_its_advisories_are(advisories: Path) -> None:
    sound = ["listed.package==1.1", "ranged==1.10", "last==2.0.1", "again==1.10", "commits==2"]
    done = _audit(advisories, sound)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 advisories, the newest of 2024-10-07" in done.stderr
    assert "years old" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("README.md", "none", "no advisories"), ("broken.yaml", "id: [", "broken.yaml")],
)
def test_a_directory_that_is_no_database_is_no_clean_bill(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    done = _audit(tmp_path, ["ranged==1.9"])
    assert done.returncode == 2
    assert said in done.stderr
