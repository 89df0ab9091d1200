"""The registry: names resolve on use; errors name the nearest name or the missing package."""

from __future__ import annotations

import importlib.util

import pytest

from robot_stack import registry
from robot_stack.errors import MissingDependencyError, RegistryError


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, rows in registry.REGISTRY.items() for n in rows]
)
def test_every_row_resolves(kind, name):
    assert callable(registry.load(kind, name))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(RegistryError, match="did you mean 'aloha'"):
        registry.load("robot", "alhoa")


def test_a_missing_package_is_told_with_its_extra(monkeypatch, tmp_path):
    (tmp_path / "needs_absent.py").write_text("import mujoco_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.REGISTRY["robot"], "absent", "needs_absent:X")
    monkeypatch.setitem(registry.EXTRAS, "mujoco_is_not_here", "sim")
    assert importlib.util.find_spec("mujoco_is_not_here") is None
    with pytest.raises(MissingDependencyError, match=r"pip install 'robot-stack\[sim\]'"):
        registry.load("robot", "absent")
