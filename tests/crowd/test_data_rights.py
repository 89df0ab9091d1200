"""What participants demand of their data: consent back, erasure, a copy."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import event, func, select

from collect.crowd import (
    badges,
    boards,
    consent,
    data_rights,
    experiment,
    my_data,
    plays,
    review,
    scoring,
    standings,
    tasks,
    way_back,
)
from collect.crowd.config import PointsConfig
from collect.crowd.ledger import points_of
from collect.crowd.names import rename, skeleton
from collect.crowd.segments import Segment
from collect.crowd.tables import (
    AuditEntry,
    Base,
    Clip,
    Consent,
    LedgerEntry,
    Participant,
    Play,
    RewardItem,
    Tombstone,
    WebSession,
    utc_now,
)
from robot_stack.cli import main
from tests.crowd.recordings import ROWS, make_recorded
from tests.crowd.visitor import Visitor

CARD = "5ca1ab1e" * 8
MP4 = b"\0\0\0\x18ftypisom" + bytes(200)


@pytest.fixture
def life(
    database,
    config,
    key,
    tmp_path,
    make_participant,
    make_station,
    make_task,
    make_staff,
):
    """Somebody who has left a trace in every table that can have one, and somebody else."""
    station, task, staff = make_station(), make_task(), make_staff("admin")
    ada = make_participant(None, kind="card", card_hash=CARD, arm="social")
    other = make_participant("Nachbarin")
    with database.begin() as tx:
        given = consent.give(tx, ada, "1", "en", consent.SCOPES)
        for name in ("Zwiebelkuchen", "Zwiebelkuchen 2"):
            rename(tx, tx.get_one(Participant, ada.id), name, ["en"])
        tx.add(
            AuditEntry(
                staff_id=staff.id,
                action="renamed",
                subject="somebody",
                detail={"names": ["Zwiebelkuchen", "x"]},
            )
        )
        tx.add(AuditEntry(staff_id=staff.id, action="hidden", subject=ada.id, detail={"why": "?"}))
    recorded = make_recorded(
        database, config, key, ada, station, task, consent_id=given.id, ended_by="button"
    )
    others = make_recorded(database, config, key, other, station, task)
    running = None
    with database.begin() as tx:
        play = tx.get_one(Play, recorded.id)
        scoring.claim(tx, play)
        scoring.claim(tx, tx.get_one(Play, others.id))
        look = review.Review(play_id=play.id, staff_id=staff.id)
        tx.add(look)
        tx.flush()
        segments = [Segment(0, ROWS - 1, "task", 3)]
        review.commit(
            tx, look, "confirm", 3, segments, PointsConfig(), rows=ROWS, desk=ONE_REVIEW,
            note="Zwiebelkuchen was quick",
        )  # fmt: skip
        badges.update(tx, ada.id)
        experiment.expose(tx, ada, "board")
        tx.add(RewardItem(id="candy", name="Candy", points=5, daily_cap=9))
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(MP4)
        tasks.add_clip(tx, config.media, task.id, tasks.ClipFile(clip, "A try"), ada.id)
        clip.unlink()
        running = Play(
            station_id=station.id, participant_id=ada.id, consent_id=given.id, kind="free", fence=1
        )
        tx.add(running)
    videos = config.media / "review" / recorded.id
    videos.mkdir(parents=True)
    (videos / "cam_high.mp4").write_bytes(b"video")
    (config.episodes / ".incoming").mkdir()
    (config.episodes / ".incoming" / f"{running.id}.0011223344556677").write_bytes(b"half")
    return ada, other, recorded, others, running


ONE_REVIEW = review.ReviewConfig(double_share=0.0)


def dump(database) -> dict[str, str]:
    """Everything that the database has, as text, by table."""
    with database.read() as tx:
        return {
            table.name: "\n".join(repr(tuple(row)) for row in tx.execute(select(table)))
            for table in Base.metadata.sorted_tables
        }


def files_of(config) -> str:
    names = []
    for root in (config.media, config.episodes):
        for folder, _, files in os.walk(root):
            names += [folder, *files]
            names += [repr((Path(folder) / file).read_bytes()) for file in files]
    return "\n".join(names)


def erase(database, config, who):
    with database.begin() as tx:
        changed = data_rights.erase(tx, who)
    return changed, data_rights.sweep(database, config)


def test_erased_means_nothing_is_left(database, config, key, life):
    ada, _, recorded, others, running = life
    contributor = key.mac("contributor", ada.id)[:32]
    needles = ["Zwiebelkuchen", skeleton("Zwiebelkuchen"), CARD, ada.pseudonym]
    before = dump(database)
    for needle in (needles[0], needles[1], CARD, ada.pseudonym):
        assert any(needle in text for text in before.values())
    assert contributor in files_of(config)

    assert erase(database, config, ada) == (True, 4)  # episode, videos, clip, an upload

    after, files = dump(database), files_of(config)
    for table, text in after.items():
        for needle in needles:
            assert needle not in text, table
        assert (ada.id in text) == (table in {"participant", "tombstone", "ledger_entry",
                                              "standing"}), table  # fmt: skip
        assert recorded.id not in text or table in {"play", "tombstone", "ledger_entry"}, table
    for needle in [*needles, ada.id, contributor, recorded.id, running.id]:
        assert needle not in files
    assert others.id in files  # the neighbour's is where it was
    with database.read() as tx:
        emptied = tx.get_one(Play, recorded.id)
        assert (emptied.state, emptied.file, emptied.sha256, emptied.metrics) == (
            "void", None, None, {},
        )  # fmt: skip
        assert emptied.participant_id is emptied.consent_id is emptied.likert_fun is None
        graves = {(grave.id, grave.kind) for grave in tx.scalars(select(Tombstone))}
        assert graves == {(ada.id, "participant"), (recorded.id, "play"), (running.id, "play")}
        assert all(plays.erased(tx, play.id) for play in (recorded, running))
        assert not plays.erased(tx, others.id)


def test_of_all_that_staff_ever_did_only_what_names_somebody_is_loaded(database, config, life):
    ada, *_ = life
    with database.begin() as tx:
        tx.add_all([AuditEntry(action="signed in", subject=f"s{n}") for n in range(50)])
        named = {"names": ["Käse \\ 100%"]}
        tx.add(AuditEntry(action="renamed", subject="somebody", detail=named))
        rename(tx, tx.get_one(Participant, ada.id), "Zwiebelkäse", ["en"])
        tx.add(AuditEntry(action="renamed", subject="x", detail={"to": {"name": "Zwiebelkäse"}}))
        tx.add(AuditEntry(action="renamed", subject="y", detail={"to": "Zwiebelkäsekuchen"}))
    loaded = []

    def load(entry, _):
        loaded.append(entry.action)

    event.listen(AuditEntry, "load", load)
    try:
        erase(database, config, ada)
    finally:
        event.remove(AuditEntry, "load", load)
    assert sorted(loaded) == ["hidden", "renamed", "renamed", "renamed", "reviewed"]
    with database.read() as tx:
        details = {row.subject: row.detail for row in tx.scalars(select(AuditEntry))}
    assert details["somebody"] == named
    assert details["y"] == {"to": "Zwiebelkäsekuchen"}
    assert "x" not in details


def test_sums_stay_right_and_the_person_is_on_no_board(database, config, life):
    ada, other, *_ = life

    def board():
        with database.read() as tx:
            found = boards.open_board(tx, "all", "all")
            return [place.participant_id for place in found.top(tx)], found.count(tx)

    with database.read() as tx:
        points, entries = points_of(tx, ada.id), tx.scalar(select(func.count(LedgerEntry.id)))
        version, _ = standings.site_version(tx)
    assert points >= 10
    assert board() == ([ada.id, other.id], 2)
    erase(database, config, ada)
    assert board() == ([other.id], 1)
    with database.read() as tx:
        assert points_of(tx, ada.id) == points
        assert tx.scalar(select(func.count(LedgerEntry.id))) == entries
        assert standings.differences(tx) == {}
        assert standings.site_version(tx)[0] > version  # pages that are kept are made anew


def test_erasing_twice_is_erasing_once(database, config, life):
    ada, *_ = life
    erase(database, config, ada)
    once = dump(database)
    assert erase(database, config, ada) == (False, 0)
    assert dump(database) == once


def test_erased_after_recording_was_taken_back(database, config, life):
    ada, _, recorded, *_ = life
    with database.begin() as tx:
        assert data_rights.withdraw(tx, ada, ["record"])
        assert data_rights.withdraw(tx, ada, ["record"]) == []
    assert erase(database, config, ada)[0]
    with database.read() as tx:
        assert tx.get_one(Play, recorded.id).participant_id is None
    assert "Zwiebelkuchen" not in str(dump(database))


def test_who_was_killed_between_the_steps_sweeps_later(database, config, life):
    ada, _, recorded, *_ = life
    with database.begin() as tx:
        data_rights.erase(tx, ada)
    assert recorded.id in files_of(config)
    # Killed before the files went, and after one of them did.
    (config.episodes / recorded.file).unlink()
    assert data_rights.sweep(database, config) == 3
    assert recorded.id not in files_of(config)
    with database.read() as tx:
        assert tx.get_one(Play, recorded.id).file is None
        assert tx.scalars(select(Clip)).all() == []


def test_a_file_that_comes_after_the_erasure_goes(database, config, life):
    ada, *_, running = life
    erase(database, config, ada)
    with database.begin() as tx:
        told = plays.Result(ended_by="rest", rows=9, metrics={"seconds": 1.0}, sha256="0" * 64)
        plays.result(tx, tx.get_one(Play, running.id), told)
    with database.read() as tx:
        late = tx.get_one(Play, running.id)
    assert (late.state, late.sha256, late.metrics) == ("void", None, {})
    stray = config.episodes / "elsewhere" / f"{running.id}.hdf5"
    stray.parent.mkdir()
    stray.write_bytes(b"late")
    assert data_rights.sweep(database, config) == 1
    assert not stray.exists()


def test_a_file_outside_is_never_removed(database, config, life, tmp_path):
    ada, _, recorded, *_ = life
    precious = tmp_path / "precious"
    precious.write_text("!")
    with database.begin() as tx:
        tx.get_one(Play, recorded.id).file = "../precious"
        data_rights.erase(tx, ada)
    with pytest.raises(ValueError, match="outside"):
        data_rights.sweep(database, config)
    assert precious.exists()


def test_taking_recording_back_deletes_recordings_and_keeps_points(database, config, life):
    ada, _, recorded, *_, running = life
    with database.begin() as tx:
        points = points_of(tx, ada.id)
        assert set(data_rights.withdraw(tx, ada, ["record"])) == {recorded.id, running.id}
    data_rights.sweep(database, config)
    assert recorded.id not in files_of(config)
    with database.read() as tx:
        play = tx.get_one(Play, recorded.id)
        assert (play.state, play.file, play.metrics, play.likert_fun) == ("void", None, {}, None)
        assert play.seconds is play.claimed is play.ended_by is None
        audit = [(row.action, row.subject, row.detail) for row in tx.scalars(select(AuditEntry))]
        assert ("reviewed", "erased", {}) in audit
        assert ("hidden", ada.id, {"why": "?"}) in audit  # she is there still
        assert play.participant_id == ada.id
        assert tx.get_one(Participant, ada.id).nickname == "Zwiebelkuchen 2"
        assert points_of(tx, ada.id) == points
        assert consent.valid(tx, ada) is None
        assert tx.scalars(select(Clip)).all() == []  # all scopes went with it
        assert standings.differences(tx) == {}
        assert "first_success" in badges.of_participant(tx, ada.id)
    with database.begin() as tx:
        badges.update(tx, ada.id)
        assert "first_success" in badges.of_participant(tx, ada.id)
        said = tx.get_one(Play, recorded.id)
        assert plays.report(tx, said, claimed=True, likert=(5, 5, 5)) is None  # of an old page
        assert said.claimed is said.likert_fun is None


@pytest.mark.parametrize(("scope", "clips"), [("research", 1), ("clips", 0)])
def test_the_other_scopes_delete_no_recording(database, config, life, scope, clips):
    ada, _, recorded, *_ = life
    with database.begin() as tx:
        assert data_rights.withdraw(tx, ada, [scope]) == []
    data_rights.sweep(database, config)
    assert (config.episodes / recorded.file).exists()
    with database.read() as tx:
        assert len(tx.scalars(select(Clip)).all()) == clips
        held = consent.valid(tx, ada)
        assert not consent.covers(held, scope)


def test_a_hidden_persons_clip_is_not_deleted(database, config, life):
    ada, *_ = life
    with database.begin() as tx:
        tx.get_one(Participant, ada.id).hidden = True
    assert data_rights.sweep(database, config) == 0


def unpacked(pieces) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces)))


def test_the_copy_has_all_of_it_and_nothing_of_others(database, config, life):
    ada, other, recorded, others, _ = life
    with database.read() as tx:
        data = my_data.collect(tx, ada, "en")
    archive = unpacked(my_data.stream(data, database, config.episodes))
    assert archive.testzip() is None
    files = {name: archive.read(name) for name in archive.namelist()}
    assert files[f"episodes/{recorded.id}.hdf5"] == (config.episodes / recorded.file).read_bytes()
    documents = {n: json.loads(text) for n, text in files.items() if n.endswith(".json")}
    assert documents["profile.json"]["nickname"] == "Zwiebelkuchen 2"
    assert documents["profile.json"]["card"] is True
    assert documents["consents.json"][0]["scopes"] == list(consent.SCOPES)
    assert {play["id"] for play in documents["plays.json"]} == {recorded.id, life[4].id}
    assert documents["reviews.json"] == [
        {"play_id": recorded.id, "done_at": documents["reviews.json"][0]["done_at"],
         "decision": "confirm", "quality": 3}
    ]  # fmt: skip
    assert [entry["sha256"] for entry in documents["episodes.json"]] == [recorded.sha256]
    assert sum(e["points"] for e in documents["points.json"]) >= 10
    for name in ("badges", "exposures", "nicknames", "clips", "boards"):
        assert documents[f"{name}.json"], name
    for text in files.values():
        for secret in (CARD, other.id, others.id, other.nickname):
            assert secret.encode() not in text
    assert b"consents" in files["README.txt"]
    with database.read() as tx:
        small = unpacked(my_data.stream(my_data.collect(tx, ada, "de")))
    assert not any(name.startswith("episodes/") for name in small.namelist())
    assert "worin" in small.read("README.txt").decode()


def test_every_table_of_somebody_is_in_the_copy():
    """A table that is added later must be in the copy, or said to be left out."""
    refer = {
        table.name
        for table in Base.metadata.sorted_tables
        for key in table.foreign_keys
        if key.target_fullname == "participant.id"
    }
    left_out = {"phone_link"}  # good for minutes, and a secret itself
    assert refer == {t.__tablename__ for t, _ in my_data.TABLES.values()} | left_out


def test_what_is_erased_while_the_copy_is_sent_is_left_out(database, config, life):
    ada, *_ = life
    with database.read() as tx:
        data = my_data.collect(tx, ada, "en")
    pieces = my_data.stream(data, database, config.episodes)
    sent = [next(pieces)]
    with database.begin() as tx:
        data_rights.erase(tx, ada)  # the files are there for a moment more
    archive = unpacked([*sent, *pieces])
    assert archive.testzip() is None
    assert not any(name.startswith("episodes/") for name in archive.namelist())


def test_the_copys_memory_does_not_grow_with_the_episode(database, config, life):
    ada, _, recorded, *_ = life
    with (config.episodes / recorded.file).open("r+b") as file:
        file.truncate(40 << 20)
    with database.read() as tx:
        data = my_data.collect(tx, ada, "en")
    sizes = [len(piece) for piece in my_data.stream(data, database, config.episodes)]
    assert sum(sizes) > 40 << 20
    assert max(sizes) < 2 << 20


# -- command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_after_a_backup_the_erased_are_erased_again(
    database, config, config_file, life, make_participant, tmp_path, capsys
):
    ada, other, recorded, others, _ = life
    cleo, dora = make_participant("Cleo"), make_participant("Dora")
    with database.begin() as tx:
        for who in (cleo, dora):
            consent.give(tx, who, "1", "en", consent.SCOPES)
    backup = tmp_path / "backup.db"
    with database.read() as tx:
        connection = tx.connection().connection.driver_connection
        copy = sqlite3.connect(backup)
        connection.backup(copy)
        copy.close()
    kept = {play.file: (config.episodes / play.file).read_bytes() for play in (recorded, others)}
    with database.begin() as tx:
        data_rights.withdraw(tx, other, ["record"])
        data_rights.withdraw(tx, cleo, ["research"])
        consent.give(tx, dora, "1", "en", ["record"])  # without research, unlike before

    def command(*words, code=0):
        assert main(["crowd", "erase", *words, "--config", str(config_file)]) == code
        return capsys.readouterr()

    assert json.loads(command(ada.id, "--json").out)["files"] == 5
    assert json.loads(command(ada.id, "--json").out) == {
        "ok": True, "erased": 0, "withdrawn": 0, "files": 0,
    }  # fmt: skip
    listed = tmp_path / "forgotten.jsonl"
    listed.write_text(command("--list").out)
    # Her, two plays, and another's; and three consents.
    assert len(listed.read_text().splitlines()) == 7
    # The disk is gone; what was kept is brought back.
    database.close()
    for end in ("-wal", "-shm"):
        Path(f"{database.url.database}{end}").unlink(missing_ok=True)
    shutil.copyfile(backup, str(database.url.database))
    for file, content in kept.items():
        (config.episodes / file).write_bytes(content)
    assert "Zwiebelkuchen" in str(dump(database))
    done = json.loads(command("--again", str(listed), "--json").out)
    assert (done["erased"], done["withdrawn"]) == (2, 3)
    assert "Zwiebelkuchen" not in str(dump(database))
    assert not any(play.id in files_of(config) for play in (recorded, others))
    with database.read() as tx:
        assert consent.valid(tx, other) is None
        for who in (cleo, dora):
            held = consent.valid(tx, who)
            assert consent.covers(held, "clips") == (who is cleo)
            assert not consent.covers(held, "research")
            assert held.withdrawn_at is None
    done = json.loads(command("--again", str(listed), "--json").out)
    assert (done["erased"], done["withdrawn"]) == (0, 0)
    for line in (
        '{"id": "x", "kind": "planet"}',
        '{"id": "x", "kind": "consent", "withdrawn": {"fame": "2027-01-01T00:00:00+00:00"}}',
        '{"id": "x", "kind": "consent", "withdrawn": {"clips": "2027-01-01T00:00:00"}}',
    ):
        listed.write_text(line)
        assert "no list of what was erased" in command("--again", str(listed), code=1).err
    assert "no participant" in command("nobody", code=1).err
    assert "--again FILE" in command(code=1).err


# -- pages -----------------------------------------------------------------------------------------


def test_the_page_shows_what_there_is_and_takes_back(database, config, browser, life):
    ada, _, recorded, *_ = life
    browser.sign_in(participant=ada)
    page = browser.get("/me/data").text
    assert page.count("/me/data/withdraw") == 3
    answer = browser.post("/me/data/withdraw", data={"scope": "research"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/me/data?done=research")
    assert browser.get("/me/data?done=research").text.count("/me/data/withdraw") == 2
    assert browser.post("/me/data/withdraw", data={"scope": "fame"}).status_code == 422
    # Recordings go only when the box is ticked.
    assert browser.post("/me/data/withdraw", data={"scope": "record"}).status_code == 422
    assert (config.episodes / recorded.file).exists()
    answer = browser.post("/me/data/withdraw", data={"scope": "record", "sure": "true"})
    assert answer.status_code == 303
    assert not (config.episodes / recorded.file).exists()
    assert "/me/data/withdraw" not in browser.get("/me/data").text


def test_erasing_needs_the_word_and_signs_out(database, config, browser, life):
    ada, _, recorded, *_ = life
    browser.sign_in(participant=ada)
    for word in ("", "yes", "LÖSCHEN"):
        assert browser.post("/me/data/erase", data={"word": word}).status_code == 422
    with database.read() as tx:
        assert tx.get_one(Participant, ada.id).erased_at is None
    answer = browser.post("/me/data/erase", data={"word": " erase "})
    assert answer.status_code == 200
    assert "Zwiebelkuchen" not in answer.text
    assert answer.headers["clear-site-data"] == '"cache", "storage"'
    with database.read() as tx:
        assert tx.get_one(Participant, ada.id).erased_at is not None
    assert not (config.episodes / recorded.file).exists()
    for path in ("/me/data", "/me/data/copy.zip"):
        assert browser.get(path).status_code in (303, 401)


def test_in_german_the_word_is_german(database, browser, life):
    ada, *_ = life
    with database.begin() as tx:
        tx.get_one(Participant, ada.id).language = "de"
    browser.sign_in(participant=ada)
    assert "LÖSCHEN" in browser.get("/me/data").text
    assert browser.post("/me/data/erase", data={"word": "ERASE"}).status_code == 422
    assert browser.post("/me/data/erase", data={"word": "löschen"}).status_code == 200


def test_the_copy_is_for_phones_and_not_too_often(database, browser, make_browser, life,
                                                  make_station):  # fmt: skip
    ada, *_ = life
    browser.sign_in(participant=ada)
    answer = browser.get("/me/data/copy.zip?episodes=true")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["cache-control"] == "no-store"
    assert any(n.startswith("episodes/") for n in unpacked([answer.content]).namelist())
    kiosk = make_browser().sign_in(kiosk=make_station(), participant=ada)
    assert kiosk.get("/me/data/copy.zip").status_code == 403
    assert "copy.zip" not in kiosk.get("/me/data").text
    codes = [browser.get("/me/data/copy.zip").status_code for _ in range(14)]
    assert codes[0] == 200
    assert codes[-1] == 429


def test_a_guest_comes_back_by_a_code_as_long_as_there_is_something(
    database, key, browser, make_browser, make_participant, make_station
):
    """On a phone to have all of it done, but not to drive; at a kiosk as with a card."""
    station = make_station()
    kiosk, phone = Visitor(browser.sign_in(kiosk=station)), Visitor(make_browser())
    kiosk.go("/signin").submit("/signin/guest").submit("/age", {"adult": "true"})
    assert "30 days after your last visit" in kiosk.page  # before anything is agreed to
    kiosk.submit("/consent", {"scope": ["record"]})
    code = re.search(r"<code>([A-Z2-7-]{19})</code>", kiosk.go("/me/data").page)[1]
    kiosk.submit("/logout")
    with database.read() as tx:
        guest = tx.scalars(select(Participant)).one()
    assert code == way_back.code_of(key, guest)
    assert f'value="{code}"' in phone.go(f"/back?code={code}").page
    for wrong in ("", code[:-1], "A" * 16, code[:-4] + "AAAA", "A" * 8 + code[9:]):
        assert phone.submit("/back", {"code": wrong}).error == 422, wrong
    phone.submit("/back", {"code": f" {code.replace('-', ' ').lower()}"})
    other = way_back.code_of(key, make_participant())
    assert phone.path == phone.go(f"/back?code={other}").path == "/me/data"  # somebody is here
    assert phone.go("/me/data/copy.zip").error == 200
    kiosk.go("/signin").go("/back").submit("/back", {"code": code})
    assert kiosk.path == "/me/data"
    with database.read() as tx:
        sessions = tx.scalars(select(WebSession).where(WebSession.participant_id == guest.id)).all()
        assert {(row.station_id, row.linked_id) for row in sessions} == {
            (None, None), (station.id, None),
        }  # fmt: skip
    phone.go("/me/data").submit("/me/data/erase", {"word": "erase"})
    assert kiosk.go("/back").submit("/back", {"code": code}).error == 422


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_codes_cannot_be_tried_out(browser):
    tried = [browser.post("/back", data={"code": "A" * 16}).status_code for _ in range(21)]
    assert tried == [422] * 20 + [429]


def test_nobody_gets_anything_without_a_session(browser):
    for path in ("/me/data", "/me/data/copy.zip"):
        assert browser.get(path).headers["location"] == "/signin"
    for path in ("/me/data/withdraw", "/me/data/erase"):
        assert browser.post(path, data={"scope": "research", "word": "erase"}).status_code == 303


def test_a_consent_of_before_is_kept_in_the_copy(database, make_participant):
    ada = make_participant()
    with database.begin() as tx:
        consent.give(tx, ada, "1", "en", ["record"])
        consent.withdraw(tx, ada, ["record"], utc_now())
        data = my_data.collect(tx, ada, "en")
        assert tx.scalar(select(func.count(Consent.id))) == 1
    assert data.documents["consents"][0]["withdrawn_at"] is not None
