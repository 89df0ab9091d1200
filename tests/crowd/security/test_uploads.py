"""What a stolen agent's token can do with files: crafted episodes, paths, sizes, and their reading.

ASVS 5.0: 5.2.1 (size), 5.3.2 (paths), 5.4.1 (names). What the site keeps it also opens: for the
review desk, for videos, for an export. A file that leads out of itself is not followed there.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest

from collect.crowd import apart, export_files, files, video, video_process, views
from collect.crowd.apart import UnreadableError
from collect.crowd.export_files import Identity, LeftOutError
from collect.crowd.tables import Play
from collect.crowd.untrusted import MOST_BYTES, open_untrusted
from robot_stack.errors import EpisodeError
from tests.crowd import factories
from tests.crowd.security.conftest import World

DATABASES = ["sqlite"]
SECRET = b"the site's key and nobody else's"


@pytest.fixture
def play(world: World) -> str:
    """A play of the agent's station whose file is awaited."""
    with world.database.begin() as tx:
        return factories.make_play(tx, world.ada, world.here, world.task).id


def _put(
    world: World,
    play: str,
    content: bytes,
    *,
    sha256: str | None = None,
    length: int | str | None = None,
) -> httpx.Response:
    headers = {"x-sha256": sha256 or hashlib.sha256(content).hexdigest()}
    if length is not None:
        headers["content-length"] = str(length)
    return world.as_("agent").request(
        "PUT", f"/api/station/play/{play}/file", csrf=None, content=content, headers=headers
    )


def _kept(world: World) -> set[str]:
    root = world.config.episodes
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_is_no_whole_episode_is_not_kept(world: World, play: str) -> None:
    before = _kept(world)
    good = (world.config.episodes / str(world.ada_play.file)).read_bytes()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10 << 20))
    refused = {
        "another hash": _put(world, play, good, sha256="0" * 64),
        "no hash": _put(world, play, good, sha256="x" * 64),
        "a ZIP bomb": _put(world, play, bomb.getvalue()),
        "a gzip bomb": _put(world, play, gzip.compress(bytes(10 << 20))),
        "nothing": _put(world, play, b""),
        "half a signature": _put(world, play, good[:4]),
        "a page": _put(world, play, b"<script>alert(1)</script>"),
        "less than it says": _put(world, play, good, length=len(good) + 1),
        "more than it says": _put(world, play, good, length=100),
        "more than is taken": _put(world, play, good, length=3 << 40),
        "of no length": _put(world, play, good, length="-1"),
    }
    wrong = {name: a.status_code for name, a in refused.items() if not 400 <= a.status_code < 500}
    assert not wrong
    assert _kept(world) == before
    with world.database.read() as tx:
        assert tx.get_one(Play, play).file is None
    assert _put(world, play, good).json() == {"file": "here"}


def test_a_body_without_a_length_does_not_fill_the_disk(world: World, play: str) -> None:
    def drip() -> object:
        yield files.SIGNATURE
        for _ in range(10):
            yield bytes(1 << 20)

    before = _kept(world)
    answer = world.as_("agent").request(
        "PUT",
        f"/api/station/play/{play}/file",
        csrf=None,
        content=drip(),
        headers={"x-sha256": "0" * 64},
    )
    assert answer.status_code in (411, 422)
    assert _kept(world) == before


@pytest.mark.parametrize(
    "name",
    [
        "../../crowd.key",
        "/etc/passwd",
        "there/{play}.hdf5",
        "here/../there/{play}.hdf5",
        "here/{play}.hdf5/../../../crowd.key",
        "here/{play}.hdf5\x00.txt",
        "HERE/{play}.hdf5",
        "./here/{play}.hdf5",
        "here//{play}.hdf5",
        "here\\{play}.hdf5",
        "%2e%2e/crowd.key",
        "here/{other}.hdf5",
        "\u202ehere/{play}.hdf5",
    ],
)
def test_a_path_that_is_told_is_the_plays_own_or_none(name: str, world: World, play: str) -> None:
    told = {
        "ended_by": "button",
        "rows": 10,
        "sha256": hashlib.sha256(SECRET).hexdigest(),
        "file": name.format(play=play, other=world.ada_play.id),
    }
    answer = world.as_("agent").post(f"/api/station/play/{play}/result", csrf=None, json=told)
    assert answer.status_code in (400, 409, 422)
    with world.database.read() as tx:
        assert tx.get_one(Play, play).file is None


@pytest.mark.parametrize("kind", ["link to a file", "linked folder", "pipe"])
def test_a_shared_directory_holds_plain_files_only(kind: str, world: World, play: str) -> None:
    """Stations on the site's own computer write there themselves; a link leads elsewhere."""
    secret = world.config.episodes.parent / "secret.hdf5"
    secret.write_bytes(files.SIGNATURE + SECRET)
    folder = world.config.episodes / "here"
    if kind == "linked folder":
        with world.database.begin() as tx:
            station = factories.make_station(tx, world.key, "a third agent", name="third")
            play = factories.make_play(tx, world.ada, station, world.task).id
        target = secret.parent / "elsewhere"
        target.mkdir()
        (target / f"{play}.hdf5").write_bytes(secret.read_bytes())
        (world.config.episodes / "third").symlink_to(target)
        token, name = "a third agent", "third"
    else:
        token, name = "token of the agent", "here"
        path = folder / f"{play}.hdf5"
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(secret)
    agent = world.as_("agent")
    agent.client.headers["authorization"] = f"Bearer {token}"
    told = {
        "ended_by": "button",
        "rows": 10,
        "sha256": hashlib.sha256(secret.read_bytes()).hexdigest(),
        "file": f"{name}/{play}.hdf5",
    }
    answer = agent.post(f"/api/station/play/{play}/result", csrf=None, json=told)
    assert answer.status_code in (400, 409, 422)


# -- what is inside ------------------------------------------------------------------------------

Craft = Callable[[h5py.File, Path], None]


def _replace(file: h5py.File, name: str) -> h5py.Group:
    parent, _, last = name.rpartition("/")
    group = file[parent or "/"]
    del group[last]
    return group


def _external_link(file: h5py.File, folder: Path) -> None:
    _replace(file, "observations/qpos")
    file["observations/qpos"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/secret")


def _soft_link(file: h5py.File, folder: Path) -> None:
    _replace(file, "observations/qpos")
    file["observations/qpos"] = h5py.SoftLink("/action")


def _raw_data_elsewhere(file: h5py.File, folder: Path) -> None:
    old = file["observations/images/cam_high"]
    shape, attributes = old.shape, dict(old.attrs)
    _replace(file, "observations/images/cam_high")
    fresh = file.create_dataset(
        "observations/images/cam_high",
        shape,
        "u1",
        external=[(str(folder / "crowd.key"), 0, h5py.h5f.UNLIMITED)],
    )
    fresh.attrs.update(attributes)


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((6, 2), "<f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "secret", (6, 2))
    _replace(file, "observations/qpos")
    file.create_virtual_dataset("observations/qpos", layout)


def _bomb(file: h5py.File, folder: Path) -> None:
    _replace(file, "observations/qpos")
    rows = MOST_BYTES // 8 * 500
    file.create_dataset("observations/qpos", (rows, 2), "<f4", chunks=(64, 2), compression="gzip")


def _wide_bomb(file: h5py.File, folder: Path) -> None:
    attributes = dict(file["observations/images/cam_high"].attrs)
    _replace(file, "observations/images/cam_high")
    fresh = file.create_dataset(
        "observations/images/cam_high", (6, 1 << 18, 1 << 18, 3), "u1", chunks=(1, 64, 64, 3)
    )
    fresh.attrs.update(attributes)


def _cycle(file: h5py.File, folder: Path) -> None:
    file["log/again"] = file["/"]


def _strings(file: h5py.File, folder: Path) -> None:
    _replace(file, "events")
    file.create_dataset("events", (1,), h5py.string_dtype())


def _packed_otherwise(file: h5py.File, folder: Path) -> None:
    values = file["observations/qpos"][:]
    _replace(file, "observations/qpos")
    file.create_dataset("observations/qpos", data=values, chunks=values.shape, scaleoffset=2)


def _dangling(file: h5py.File, folder: Path) -> None:
    file["extra"] = h5py.ExternalLink("/proc/self/environ", "/")


HOSTILE: list[Craft] = [
    _external_link,
    _soft_link,
    _raw_data_elsewhere,
    _virtual,
    _bomb,
    _wide_bomb,
    _cycle,
    _strings,
    _dangling,
    _packed_otherwise,
]


@pytest.mark.parametrize("craft", HOSTILE)
def test_a_file_that_leads_out_of_itself_is_read_by_nobody(
    craft: Craft, world: World, tmp_path: Path
) -> None:
    """Uploaded through the agent's PUT, as a stolen token would; then review, video, export."""
    path = tmp_path / "crafted.hdf5"
    path.write_bytes((world.config.episodes / str(world.ada_play.file)).read_bytes())
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["secret"] = np.full((6, 2), 0.4711, "<f4")
    (tmp_path / "crowd.key").write_bytes(SECRET * 500)
    with h5py.File(path, "r+") as file:
        craft(file, tmp_path)
    with world.database.begin() as tx:
        row = factories.make_play(tx, world.ada, world.here, world.task, metrics={"seconds": 30.0})
    assert _put(world, row.id, path.read_bytes()).status_code == 200
    admin = world.as_("admin")
    page = admin.get(f"/staff/review/{row.id}")
    data = admin.get(f"/api/staff/review/{row.id}")
    assert page.status_code == 200 and data.status_code == 404, data.text[:200]
    assert "damaged" in data.json()["message"]
    with world.database.read() as tx:
        play = tx.get_one(Play, row.id)
    stored = world.config.episodes / str(play.file)
    out = tmp_path / "video"
    out.mkdir()
    with pytest.raises(EpisodeError), open_untrusted(stored) as episode:
        video_process.make(episode, out)
    assert not list(out.iterdir())
    identity = Identity("0" * 36, b"salt", "somebody", "somewhere", "1", ("nothing secret",))
    with pytest.raises(LeftOutError):
        export_files.copy_episode(stored, tmp_path / "out.hdf5", str(play.sha256), identity)
    assert not (tmp_path / "out.hdf5").exists()


def test_truncated_and_scrambled_files_are_said_to_be_damaged(world: World, tmp_path: Path) -> None:
    good = (world.config.episodes / str(world.ada_play.file)).read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "scrambled.hdf5"
    for number in range(60):
        data = bytearray(good[: int(random.integers(100, len(good)))] if number % 2 else good)
        for at in random.integers(8, min(len(data), 6000), 40):
            data[at] = int(random.integers(256))
        path.write_bytes(bytes(data))
        try:
            with open_untrusted(path) as episode:
                _ = episode.qpos.sum(), episode.events, len(episode)
        except EpisodeError:
            pass


def test_numbers_that_json_has_not_are_no_mistake_of_the_site(world: World) -> None:
    path = world.config.episodes / str(world.ada_play.file)
    for rate in (float("nan"), float("inf"), 0.0, -1.0):
        with h5py.File(path, "r+") as file:
            file.attrs["rate_hz"] = rate
        answer = world.as_("admin").get(f"/api/staff/review/{world.ada_play.id}")
        assert answer.status_code in (200, 404), (rate, answer.text)


# -- what is done to who reads it ------------------------------------------------------------------

HURT = """
import ctypes, json, os, resource, sys, time
import h5py
from robot_stack.errors import EpisodeError

def crash(*_, **__):
    ctypes.string_at(0)

def spin(*_, **__):
    while True:
        pass

def wait(*_, **__):
    while not os.path.exists(__file__ + ".go"):
        time.sleep(0.02)
    os._exit(1)

def hoard(*_, **__):
    bytearray(8 << 30)

def tell(*_, **__):
    kinds = ("CORE", "AS", "FSIZE", "CPU")
    raise EpisodeError(json.dumps({k: resource.getrlimit(getattr(resource, "RLIMIT_" + k))
                                   for k in kinds}))

def say(*_, **__):
    os.write(1, b"%s")
    os._exit(0)

h5py.File = %s
from collect.crowd.apart_process import main
sys.exit(main(sys.argv[1:]))
"""


Hurt = Callable[..., Path]


@pytest.fixture
def hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hurt:
    """``hurt("crash")``: from now on, that is what becomes of who opens a file. Its program."""

    def begin(how: str, said: str = "") -> Path:
        script = tmp_path / f"{how}.py"
        script.write_text(HURT % (said, how))
        monkeypatch.setattr(apart, "PROGRAM", (sys.executable, str(script)))
        limits = dataclasses.replace(apart.VIEW.limits, cpu_s=1, wall_s=60.0)
        if how == "wait":
            limits = dataclasses.replace(limits, wall_s=0.5)
        monkeypatch.setattr(apart, "VIEW", apart.Job("view", limits))
        return script

    return begin


@pytest.mark.parametrize(
    ("how", "said", "shown"),
    [
        ("crash", "crashed", "What opened its file crashed"),
        ("spin", "too long", "took too long and was stopped"),
        ("wait", "too long", "took too long and was stopped"),
        ("hoard", "damaged", "is damaged and can&#39;t be read"),
    ],
)
def test_what_a_file_does_to_who_reads_it_is_told_and_the_site_goes_on(
    how: str,
    said: str,
    shown: str,
    world: World,
    hurt: Hurt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin, where = world.as_("admin"), f"/staff/review/{world.ada_play.id}"
    assert shown not in admin.get(where).text
    hurt(how)
    answer = admin.get(f"/api{where}")
    assert answer.status_code == 404
    assert said in answer.json()["message"]
    assert world.as_("nobody").get("/health").status_code == 200
    assert shown in admin.get(where).text
    # It has hurt once; it isn't asked again for the next reviewer, nor for videos.
    monkeypatch.setattr(apart, "PROGRAM", ("/nowhere",))
    assert said in admin.get(f"/api{where}").json()["message"]
    assert admin.get(f"/api{where}/video").json()["state"] == "failed"
    # After a while it is, as it may have been the computer's fault.
    monkeypatch.undo()
    monkeypatch.setattr(views, "RETRY_S", 0.0)
    assert admin.get(f"/api{where}").status_code == 200
    assert shown not in admin.get(where).text


def test_while_a_file_is_read_that_hangs_others_are_answered_and_few_wait(
    world: World, hurt: Hurt, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = hurt("wait")
    limits = dataclasses.replace(apart.VIEW.limits, wall_s=60.0)
    monkeypatch.setattr(apart, "VIEW", apart.Job("view", limits))
    monkeypatch.setattr(views, "AT_ONCE", 1)
    monkeypatch.setattr(views, "PATIENCE_S", 0.0)
    first, second = world.as_("admin"), world.as_("admin")
    shelf: views.Views = world.app.state.views
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(first.get(f"/api/staff/review/{world.ada_play.id}"))
    )
    thread.start()
    try:
        deadline = time.monotonic() + 60.0
        while not shelf._open:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert second.get("/health").status_code == 200
        turned_away = second.get(f"/api/staff/review/{world.bob_play.id}")
        assert not answers, "the site stood still"
    finally:
        Path(f"{script}.go").touch()
        thread.join()
    for answer in (turned_away, *answers):  # the first process failed of itself in the end
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert "crashed" not in second.get(f"/staff/review/{world.ada_play.id}").text


def test_who_reads_a_file_has_limits_and_leaves_no_core(world: World, hurt: Hurt) -> None:
    hurt("tell")
    with pytest.raises(UnreadableError) as caught:
        apart.run(apart.VIEW, world.config.episodes / str(world.ada_play.file))
    had, limits = json.loads(caught.value.said), apart.VIEW.limits
    assert had["CORE"] == [0, 0]
    assert limits.memory < had["AS"][0] == had["AS"][1] < limits.memory + (2 << 30)
    assert had["FSIZE"] == [limits.written] * 2
    assert had["CPU"][0] == limits.cpu_s


@pytest.mark.parametrize("how", ["crash", "wait", "hoard"])
def test_what_a_file_does_to_who_reads_it_costs_an_export_that_episode_only(
    how: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = os.getpid()

    def opened(path: Path) -> Any:
        if os.getpid() != command:
            if how == "crash":
                os.kill(os.getpid(), signal.SIGKILL)  # SIGSEGV is pytest's to tell of
            while how == "wait":
                time.sleep(1.0)
            bytearray(8 << 30)
        return open_untrusted(path)

    limits = dataclasses.replace(apart.VIEW.limits, wall_s=0.2 if how == "wait" else 60.0)
    monkeypatch.setattr(export_files, "rehearse", functools.partial(apart.rehearse, limits=limits))
    source, sha256 = world.config.episodes / str(world.ada_play.file), str(world.ada_play.sha256)
    identity = Identity("0" * 36, b"salt", "somebody", "somewhere", "1", ("nothing secret",))
    with monkeypatch.context() as patched:
        patched.setattr(export_files, "open_untrusted", opened)
        with pytest.raises(LeftOutError) as caught:
            export_files.copy_episode(source, tmp_path / "out.hdf5", sha256, identity)
    assert caught.value.reason == "file_unreadable"
    assert not (tmp_path / "out.hdf5").exists()
    apart.rehearse(lambda: export_files._read(source), source)  # no harm of its own


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "[" * 5000,
        '{"rows": -1, "rate_hz": 50.0}',
        '{"rows": true, "rate_hz": 50.0}',
        '{"rows": 99999999999, "rate_hz": 50.0}',
        '{"rows": 5, "rate_hz": NaN}',
        '{"rows": 5, "rate_hz": 1e999}',
        '{"rows": 5, "rate_hz": "50"}',
    ],
)
def test_what_a_process_says_that_a_file_has_taken_over_is_looked_at(said: str) -> None:
    with pytest.raises(UnreadableError):
        views._checked(said.encode())


def test_a_process_that_a_file_has_taken_over_names_no_file_of_the_site(
    world: World, hurt: Hurt, tmp_path: Path
) -> None:
    index = {"rate_hz": 25.0, "step": 2, "rows": 6}
    for name in ("../../crowd.key", "/etc/passwd", "index.json", "0.mp4/x"):
        with pytest.raises(ValueError, match="called"):
            video.Index.read(json.dumps({**index, "cameras": {"cam_high": name}}))
    maker = video.VideoMaker(tmp_path, 2, lambda _: True)
    (tmp_path / "part").mkdir()
    said = json.dumps({**index, "cameras": {"cam_high": "0.mp4"}})
    hurt("say", said.replace('"', '\\"'))
    (tmp_path / "part/0.mp4").symlink_to(tmp_path / "crowd.key")
    with pytest.raises(ValueError, match="no file"):
        maker._encode(world.ada_play.id, tmp_path, tmp_path / "part")
