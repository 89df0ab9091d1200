"""Tasks from files, clips with captions: what is let in, where it goes, who may see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from collect.crowd import consent, tasks
from collect.crowd.tables import Clip, Participant, Task, TaskText, utc_now
from robot_stack.cli import main
from robot_stack.errors import ConfigError

DATABASES = ["sqlite"]
MP4 = b"\0\0\0\x18ftypisom" + bytes(200)
WEBM = b"\x1a\x45\xdf\xa3" + bytes(200)
VTT = "WEBVTT\n\n00:00.000 --> 00:02.000\nThe robot picks a sweet.\n"
YAML = """\
id: hi-chew
difficulty: easy
seconds: 90
par_s: 30
subtasks: [pick, place]
texts:
  en: {title: A chew, body: From the bin.}
  de: {title: Ein Bonbon, body: Aus der Kiste.}
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "task.yaml").write_text(
        YAML + "clips:\n  - {file: demo.mp4, caption: How, captions: {en: demo.vtt}}\n"
    )
    (folder / "demo.mp4").write_bytes(MP4)
    (folder / "demo.vtt").write_text(VTT)
    return folder


@pytest.fixture
def command(config_file, capsys):
    def run(*words):
        code = main(["crowd", "task", *map(str, words), "--json", "--config", str(config_file)])
        said = capsys.readouterr()
        return code, json.loads(said.out) if code == 0 else said.err

    return run


def media_files(config):
    return sorted(str(p.relative_to(config.media)) for p in config.media.rglob("*") if p.is_file())


def test_a_task_with_a_clip_is_added_and_served(command, folder, config, database, browser):
    code, answer = command("add", folder / "task.yaml")
    assert (code, answer["added"]) == (0, ["hi-chew"])
    with database.read() as tx:
        task = tx.get_one(Task, "hi-chew")
        assert (task.difficulty, task.seconds, task.par_s) == ("easy", 90, 30.0)
        texts = {t.language: t.title for t in tx.scalars(select(TaskText))}
        (view,) = tasks.clips_of(tx, config.media, "hi-chew")
    assert texts == {"en": "A chew", "de": "Ein Bonbon"}
    assert media_files(config) == [f"clips/{view.id}.en.vtt", f"clips/{view.id}.mp4"]
    answer = browser.get(view.url)
    assert (answer.content, answer.headers["content-type"]) == (MP4, "video/mp4")
    part = browser.get(view.url, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    ((language, url),) = view.captions
    assert language == "en"
    assert browser.get(url).text == VTT
    assert browser.get(url).headers["content-type"].startswith("text/vtt")
    for nothing in (f"/clips/{view.id}/de.vtt", "/clips/" + "0" * 36):
        assert browser.get(nothing).status_code == 404


def test_added_again_it_is_changed_and_keeps_its_clips(command, folder, config, database):
    command("add", folder / "task.yaml")
    before = media_files(config)
    (folder / "task.yaml").write_text(YAML.replace("easy", "hard").replace("A chew", "Two"))
    _, answer = command("add", folder / "task.yaml")
    assert answer["changed"] == ["hi-chew"]
    with database.read() as tx:
        assert tx.get_one(Task, "hi-chew").difficulty == "hard"
        assert tx.get_one(TaskText, ("hi-chew", "en")).title == "Two"
    assert media_files(config) == before
    assert command("list")[1]["tasks"][0]["clips"] == 1


def test_a_clip_is_added_by_itself(command, folder, config):
    (folder / "task.yaml").write_text(YAML)
    command("add", folder / "task.yaml")
    (folder / "b.webm").write_bytes(WEBM)
    code, answer = command(
        "clip", "hi-chew", folder / "b.webm", "--caption", "B", "--captions",
        f"de={folder / 'demo.vtt'}",
    )  # fmt: skip
    assert code == 0
    assert answer["file"].endswith(".webm")
    assert len(media_files(config)) == 2
    assert "no task 'x'" in command("clip", "x", folder / "b.webm", "--caption", "B")[1]


@pytest.mark.parametrize(
    ("line", "with_", "says"),
    [
        ("id: hi-chew", "id: ../etc", "must be a-z"),
        ("difficulty: easy", "difficulty: medium", "easy or hard"),
        ("par_s: 30", "par_s: 300", "longer than"),
        ("seconds: 90", "seconds: 901", "900"),
        ("seconds: 90", "second: 90", "second"),
        ("title: A chew", "title: ''", "1 to 80"),
        ("  de: {title: Ein Bonbon, body: Aus der Kiste.}\n", "", "no text in de"),
        ("file: demo.mp4", "file: ../crowd.key", "leaves"),
        ("file: demo.mp4", "file: /etc/hostname", "leaves"),
        ("file: demo.mp4", "file: outside.mp4", "leaves"),
        ("file: demo.mp4", "file: gone.mp4", "cannot read"),
        ("file: demo.mp4", "file: script.mp4", "neither MP4 nor WebM"),
        ("file: demo.mp4", "file: empty.mp4", "0 bytes"),
        ("{en: demo.vtt}", "{en: script.mp4}", "no WebVTT"),
        ("{en: demo.vtt}", "{en: latin.vtt}", "UTF-8"),
        ("{en: demo.vtt}", "{../x: demo.vtt}", "no language"),
    ],
)
def test_what_is_no_task_leaves_nothing(command, folder, config, database, line, with_, says):
    (folder / "outside.mp4").symlink_to("../crowd.key")
    (folder / "script.mp4").write_bytes(b"#!/bin/sh\n" + bytes(100))
    (folder / "empty.mp4").touch()
    (folder / "latin.vtt").write_bytes(VTT.encode() + b"\xe4")
    text = (folder / "task.yaml").read_text()
    assert line in text
    (folder / "task.yaml").write_text(text.replace(line, with_))
    code, said = command("add", folder / "task.yaml")
    assert code != 0
    assert says in said
    assert media_files(config) == []
    with database.read() as tx:
        assert tx.scalars(select(Task)).all() == []


def test_a_huge_clip_is_refused(command, folder, config):
    with Path(folder / "demo.mp4").open("r+b") as file:
        file.truncate(tasks.MAX_VIDEO + 1)
    assert "allowed are 1 to" in command("add", folder / "task.yaml")[1]
    assert media_files(config) == []


def test_a_participants_clip_is_shown_while_it_agrees(
    database, config, browser, folder, make_participant, make_consent, make_task
):
    ada, task = make_participant(), make_task()
    make_consent(ada, scopes=["record", "clips"])
    clip_file = tasks.ClipFile(folder / "demo.mp4", "Ada's")
    with database.begin() as tx:
        clip = tasks.add_clip(tx, config.media, task.id, clip_file, ada.id)
    url = f"/clips/{clip.id}"

    def seen():
        with database.read() as tx:
            listed = [view.id for view in tasks.clips_of(tx, config.media, task.id)]
        assert (listed == [clip.id]) == (browser.get(url).status_code == 200)
        return bool(listed)

    assert seen()
    for change, back in (({"hidden": True}, {"hidden": False}), ({"erased_at": utc_now()}, None)):
        with database.begin() as tx:
            for name, value in change.items():
                setattr(tx.get_one(Participant, ada.id), name, value)
        assert not seen()
        with database.begin() as tx:
            for name, value in (back or {"erased_at": None}).items():
                setattr(tx.get_one(Participant, ada.id), name, value)
        assert seen()
    with database.begin() as tx:
        consent.withdraw(tx, ada, ["clips"])
    assert not seen()
    with database.begin() as tx:
        tasks.remove_clip(tx, config.media, tx.get_one(Clip, clip.id))
    assert media_files(config) == []


def test_a_clip_whose_row_fails_leaves_no_file(database, config, folder, make_task):
    task = make_task()
    clip = tasks.ClipFile(folder / "demo.mp4", "A", {"en": folder / "task.yaml"})
    with pytest.raises(ConfigError, match="no WebVTT"), database.begin() as tx:
        tasks.add_clip(tx, config.media, task.id, clip)
    nobody = tasks.ClipFile(folder / "demo.mp4", "A")
    with pytest.raises(Exception, match="FOREIGN KEY"), database.begin() as tx:
        tasks.add_clip(tx, config.media, task.id, nobody, participant_id="nobody")
    assert media_files(config) == []
