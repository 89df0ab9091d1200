"""The project itself: direction of imports, and what the wheel holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("robot_stack", "hardware", "policies", "server", "collect")


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


ALLOWED = """
server robot_stack
server hardware
server policies
collect robot_stack
collect hardware
collect policies
hardware robot_stack
policies robot_stack
hardware mujoco
"""
FORBIDDEN = """
server collect
collect server
hardware policies
policies hardware
hardware server
policies collect
robot_stack hardware
robot_stack server
robot_stack mujoco
robot_stack torch
robot_stack cv2
"""


def five_packages(directory: Path, imports: str) -> None:
    """The five packages, empty but for one module for each import."""
    shutil.copy(ROOT / "pyproject.toml", directory)
    for package in PACKAGES:
        (directory / package).mkdir()
        (directory / package / "__init__.py").touch()
    for importer, imported in (line.split() for line in imports.split("\n") if line):
        (directory / importer / f"to_{imported}.py").write_text(f"import {imported}\n")


def test_imports_may_go_down(tmp_path: Path) -> None:
    five_packages(tmp_path, ALLOWED)
    done = lint_imports(tmp_path)
    assert done.returncode == 0, done.stdout


def test_every_other_import_is_found(tmp_path: Path) -> None:
    five_packages(tmp_path, FORBIDDEN)
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    for importer, imported in (line.split() for line in FORBIDDEN.split("\n") if line):
        assert f"{importer}.to_{imported} -> {imported} (l.1)" in done.stdout


def test_the_wheel_holds_all_packages_and_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in (*PACKAGES, "benchmarks", "configs")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in {".py", ".yaml", ".html", ".js", ".css"}
    }
    assert {"robot_stack/cli.py", "configs/aloha_virtual.yaml"} <= wanted
    assert wanted <= held
