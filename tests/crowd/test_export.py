"""The export: nothing without consent, nobody told, recordings as they were, all or nothing."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import re
import secrets
import shutil

import h5py
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from collect.crowd import consent, data_rights, export_files, export_part, review
from collect.crowd import export as crowd_export
from collect.crowd.config import PointsConfig
from collect.crowd.export import export, survey
from collect.crowd.export_manifest import COLUMNS
from collect.crowd.export_select import REASONS, Terms, choose
from collect.crowd.segments import Segment
from collect.crowd.stations import CONTRIBUTOR
from collect.crowd.tables import (
    Base,
    Consent,
    Participant,
    Play,
    Station,
    utc_now,
)
from robot_stack.cli import main
from robot_stack.episode import Episode
from robot_stack.errors import ConfigError
from tests.crowd import factories
from tests.crowd.recordings import ROWS, make_recorded

UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def station(make_station):
    return make_station("station's secret token")


@pytest.fixture
def record(database, config, key, station, make_participant, make_task):
    """``record()``: a participant and its exportable play of an hour ago."""
    task = make_task(subtasks=["pick"])

    def make(who=None, **columns):
        who = who or make_participant()
        began = utc_now() - HOUR
        if "consent_id" not in columns:
            with database.begin() as tx:
                given = factories.make_consent(tx, who, given_at=began - HOUR)
            columns["consent_id"] = given.id
        values = {"task": task, "started_at": began, **columns}
        return who, make_recorded(database, config, key, who, station, **values)

    return make


def reviewed(database, play, staff, quality=2, segments=None, rows=ROWS):
    with database.begin() as tx:
        look = review.Review(play_id=play.id, staff_id=staff.id)
        tx.add(look)
        tx.flush()
        marks = segments or [Segment(0, 2, "task:pick", quality), Segment(3, 4, "play", 0)]
        desk = review.ReviewConfig(double_share=0.0)
        review.commit(tx, look, "confirm", quality, marks, PointsConfig(), rows=rows, desk=desk)


def run(database, config, key, target, **terms):
    return export(database, config, key, target, Terms(**terms))


def manifest(target):
    return json.loads((target / "manifest.json").read_text())


def left_out(database, config, key, tmp_path, **terms):
    """Reasons by the export itself, which must be those that the survey says, but for hashes."""
    target = tmp_path / f"out-{secrets.token_hex(4)}"
    said = survey(database, config, Terms(**terms))
    done = run(database, config, key, target, **terms)
    assert manifest(target)["left_out"] == done.left_out
    late = {"file_changed", "file_unreadable", "labels", "identifying"}
    assert said.left_out == {k: v for k, v in done.left_out.items() if k not in late}
    return done.episodes, done.left_out


# -- what leaves -----------------------------------------------------------------------------------


def test_a_consented_play_leaves_with_its_labels(database, config, key, record, make_staff,
                                                  tmp_path):  # fmt: skip
    _, play = record()
    reviewed(database, play, make_staff("reviewer"))
    done = run(database, config, key, tmp_path / "out")
    assert (done.episodes, done.contributors, done.left_out) == (1, 1, {})
    said = manifest(tmp_path / "out")
    (entry,) = said["episodes"]
    assert set(entry) == set(COLUMNS["episodes"])
    assert (entry["decision"], entry["quality"], entry["labelled_rows"]) == ("confirm", 2, 5)
    assert (entry["task"], entry["kind"], entry["rows"]) == (play.task_id, "task", ROWS)
    assert entry["likert"] == [None, 5, None]
    assert said["counts"]["by_task"] == {play.task_id: 1}
    path = tmp_path / "out" / entry["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    table = pq.read_table(tmp_path / "out" / entry["labels"])
    assert table.column_names == list(COLUMNS["labels"])
    assert table["label"].to_pylist() == ["task:pick"] * 3 + ["play"] * 2 + [""]
    assert table["quality"].to_pylist() == [2, 2, 2, 0, 0, -1]
    with Episode.open(path) as episode:
        assert table["t_ns"].to_pylist() == episode.t_ns.tolist()
    assert "No sound" in (tmp_path / "out/consent/1.en.txt").read_text()
    readme = (tmp_path / "out/README.md").read_text()
    assert "1 episodes by 1 contributors" in readme
    assert not (tmp_path / "out.part").exists()


def test_the_recording_is_as_it_was_but_for_who_drove(database, config, key, record, tmp_path):
    _, play = record(events=("servo 9 is warm",))
    run(database, config, key, tmp_path / "out")
    (entry,) = manifest(tmp_path / "out")["episodes"]
    with (
        Episode.open(config.episodes / play.file) as old,
        Episode.open(tmp_path / "out" / entry["file"]) as new,
    ):
        names: list[str] = []
        old.file.visit(names.append)
        for name in names:
            if isinstance(old.file[name], h5py.Dataset) and name != "metadata":
                assert old.file[name][()].tobytes() == new.file[name][()].tobytes(), name
                assert dict(old.file[name].attrs).keys() == dict(new.file[name].attrs).keys()
        before, after = old.metadata.to_dict(), new.metadata.to_dict()
        assert new.file.attrs["uuid"] == entry["uuid"] == after["uuid"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "uuid", "boot_id", "operator", "station", "session", "consent", "extra",
    }  # fmt: skip
    assert after["extra"] == {"lab": "cafe"}
    assert after["operator"] == entry["contributor"]
    assert after["consent"] == "version 1: research"
    # The very file of the station is untouched.
    assert hashlib.sha256((config.episodes / play.file).read_bytes()).hexdigest() == play.sha256


def ids_of(database, key) -> set[str]:
    """Every id, hash, name and token that the database has."""
    found = set()
    with database.read() as tx:
        for table in Base.metadata.sorted_tables:
            for row in tx.execute(select(table)):
                for value in row:
                    if isinstance(value, str) and (
                        UUID.fullmatch(value.encode()) or re.fullmatch("[0-9a-f]{32,64}", value)
                    ):
                        found.add(value)  # fmt: skip
        for who in tx.scalars(select(Participant)):
            found |= {who.pseudonym, key.mac(CONTRIBUTOR, who.id)[:32]}
            found |= {who.nickname} - {None}
        found |= set(tx.scalars(select(Station.name)))
    return found


def every_byte(target) -> bytes:
    return b"\n".join(
        str(path.relative_to(target)).encode() + b"\n" + (path.read_bytes() if path.is_file()
                                                          else b"")
        for path in sorted(target.rglob("*"))
    )  # fmt: skip


@pytest.mark.parametrize("chunk", [export_files.CHUNK, 41])  # ids lie across the ends of these
def test_no_byte_tells_who_it_was(
    database, config, key, record, make_staff, tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(export_files, "CHUNK", chunk)
    staff = make_staff("reviewer")
    ada, first = record()
    record(ada)
    record()
    reviewed(database, first, staff)
    assert run(database, config, key, tmp_path / "out").episodes == 3
    data = every_byte(tmp_path / "out")
    ids = ids_of(database, key)
    assert len(ids) > 20
    assert first.id in every_byte(config.episodes).decode("latin1")
    for name in ids:
        assert name.encode() not in data, name


def test_two_exports_have_no_name_in_common(database, config, key, record, tmp_path):
    ada, _ = record()
    record(ada)
    record()
    found = []
    for name in ("one", "two"):
        run(database, config, key, tmp_path / name)
        said = manifest(tmp_path / name)
        # Within one export, one person is one contributor.
        counts = sorted(
            len(list(group))
            for _, group in itertools.groupby(sorted(e["contributor"] for e in said["episodes"]))
        )
        assert counts == [1, 2]
        names = set(UUID.findall(every_byte(tmp_path / name)))
        names |= {e[k].encode() for e in said["episodes"] for k in ("contributor", "station")}
        found.append(names)
    assert len(found[0]) >= 3 + 2 + 1
    assert not found[0] & found[1]


# -- what doesn't ----------------------------------------------------------------------------------


def with_row(database, model, row_id, **columns):
    with database.begin() as tx:
        row = tx.get_one(model, row_id)
        for name, value in columns.items():
            setattr(row, name, value)


def spoil(database, config, who, play, reason, staff):
    """Make an exportable play not be, for one reason."""
    given = play.consent_id
    path = config.episodes / play.file
    match reason:
        case "erased":
            with database.begin() as tx:
                data_rights.erase(tx, who)
        case "nothing_recorded":
            with_row(database, Play, play.id, state="void")
        case "not_synced":
            with_row(database, Play, play.id, state="finished")
        case "hidden":
            with_row(database, Participant, who.id, hidden=True)
        case "no_consent":
            with_row(database, Play, play.id, consent_id=None)
        case "consent_later":
            with_row(database, Consent, given, given_at=play.started_at + HOUR / 60)
        case "not_agreed":
            with_row(database, Consent, given, scopes=["record", "clips"])
        case "withdrawn":
            with database.begin() as tx:
                consent.withdraw(tx, who, ["research"])
        case "before":
            with_row(database, Play, play.id, started_at=utc_now() - 100 * HOUR)
            with_row(database, Consent, given, given_at=utc_now() - 200 * HOUR)
        case "quality":
            reviewed(database, play, staff, quality=1)
        case "file_missing":
            path.unlink()
        case "file_changed":
            path.write_bytes(path.read_bytes() + b"!")
        case "file_unreadable":
            path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            with_row(database, Play, play.id, sha256=digest)
        case "labels":
            reviewed(database, play, staff, quality=3, rows=ROWS + 1)


TERMS = {"before": {"since": utc_now() - 50 * HOUR}, "quality": {"min_quality": 2},
         "not_reviewed": {"min_quality": 2}}  # fmt: skip


@pytest.mark.parametrize("reason", [name for name in REASONS if name != "identifying"])
def test_each_reason_keeps_a_play_in(database, config, key, record, make_staff, tmp_path, reason):
    terms = TERMS.get(reason, {})
    staff = make_staff("reviewer")
    _, fine = record()
    if "min_quality" in terms:
        reviewed(database, fine, staff, quality=2)
    who, play = record()
    spoil(database, config, who, play, reason, staff)
    assert left_out(database, config, key, tmp_path, **terms) == (1, {reason: 1})


@pytest.mark.parametrize("chunk", [export_files.CHUNK, 41])
def test_a_recording_that_tells_who_drove_stays(
    database, config, key, record, tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(export_files, "CHUNK", chunk)
    ada, _ = record()
    record(ada, events=(f"started for {ada.id}",))
    assert left_out(database, config, key, tmp_path) == (1, {"identifying": 1})


def test_anothers_consent_is_none(database, config, key, record, tmp_path):
    _, fine = record()
    record(consent_id=fine.consent_id)
    assert left_out(database, config, key, tmp_path) == (1, {"no_consent": 1})


def test_who_did_not_agree_to_research_is_in_no_export(
    database, config, key, record, make_participant, tmp_path
):
    for scopes in (["record"], ["record", "research"], ["record", "clips"]):
        ada = make_participant()
        with database.begin() as tx:
            row = factories.make_consent(tx, ada, scopes=scopes, given_at=utc_now() - 3 * HOUR)
        record(ada, consent_id=row.id)
    assert left_out(database, config, key, tmp_path) == (1, {"not_agreed": 2})


def test_a_file_elsewhere_is_not_taken(database, config, key, record, tmp_path):
    _, play = record()
    shutil.move(config.episodes / play.file, tmp_path / "elsewhere.hdf5")
    with_row(database, Play, play.id, file="../elsewhere.hdf5")
    assert left_out(database, config, key, tmp_path) == (0, {"file_missing": 1})
    link = config.episodes / "link.hdf5"
    link.symlink_to(tmp_path / "elsewhere.hdf5")
    with_row(database, Play, play.id, file="link.hdf5")
    assert left_out(database, config, key, tmp_path) == (0, {"file_missing": 1})


def test_withdrawn_while_it_is_copied_is_not_in_it(database, config, key, record, tmp_path):
    ada, _ = record()
    bea, _ = record()
    cid, _ = record()
    record()
    acted = []

    def progress(done, total):
        if done == total and not acted:  # all is copied, nothing is given out
            acted.append(1)
            with database.begin() as tx:
                consent.withdraw(tx, ada, ["research"])
                tx.get_one(Participant, bea.id).hidden = True
                data_rights.erase(tx, cid)

    done = export(database, config, key, tmp_path / "out", Terms(), progress)
    assert acted
    assert (done.episodes, done.left_out) == (1, {"withdrawn": 1, "hidden": 1, "erased": 1})
    assert len(list((tmp_path / "out/episodes").iterdir())) == 1
    assert len(list((tmp_path / "out/labels").iterdir())) == 1


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_whatever_the_mix_nothing_without_consent_gets_out(database):
    """Judged here by hand, field by field, without the site's own functions."""
    moment = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    subset = st.lists(st.sampled_from(("record", "research", "clips")), unique=True)
    one = st.fixed_dictionaries(
        {
            "scopes": subset,
            "withdrawn": subset,
            "all_withdrawn": st.booleans() | st.just(False),
            "given": st.integers(-2, 2),
            "state": st.sampled_from(["running", "finished", "void"] + ["synced"] * 5),
            "hidden": st.booleans() | st.just(False),
            "erased": st.booleans() | st.just(False),
            "consent": st.sampled_from(["own"] * 4 + ["none", "other"]),
            "file": st.booleans() | st.just(True),
        }
    )

    def allowed(case):
        return (
            case["consent"] == "own"
            and {"record", "research"} <= set(case["scopes"]) - set(case["withdrawn"])
            and not case["all_withdrawn"]
            and case["given"] <= 0
            and case["state"] == "synced"
            and case["file"]
            and not case["hidden"]
            and not case["erased"]
        )

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(cases=st.lists(one, max_size=6))
    def check(cases):
        with database.begin() as tx:
            for table in reversed(Base.metadata.sorted_tables):
                tx.execute(delete(table))
            station = Station(name="s", state={})
            stranger = Participant(kind="guest", pseudonym="Stranger")
            tx.add_all([station, stranger])
            tx.flush()
            theirs = factories.make_consent(tx, stranger, given_at=moment - HOUR)
            wanted = set()
            for n, case in enumerate(cases):
                who = Participant(
                    kind="guest", pseudonym=f"P{n}", hidden=case["hidden"],
                    erased_at=moment if case["erased"] else None,
                )  # fmt: skip
                tx.add(who)
                tx.flush()
                own = factories.make_consent(
                    tx, who, scopes=case["scopes"],
                    withdrawn=dict.fromkeys(case["withdrawn"], moment.isoformat()),
                    withdrawn_at=moment if case["all_withdrawn"] else None,
                    given_at=moment + case["given"] * HOUR,
                )  # fmt: skip
                play = Play(
                    station_id=station.id, participant_id=who.id, kind="free", fence=1,
                    consent_id={"own": own.id, "other": theirs.id, "none": None}[case["consent"]],
                    state=case["state"], started_at=moment,
                    file=f"s/{n}.hdf5" if case["file"] else None, sha256="0" * 64,
                )  # fmt: skip
                tx.add(play)
                tx.flush()
                if allowed(case):
                    wanted.add(play.id)
        with database.read() as tx:
            found = choose(tx, Terms())
        assert {one.play.id for one in found.chosen} == wanted
        assert found.left_out.total() == len(cases) - len(wanted)

    check()


# -- whole or not at all ---------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill would: nothing catches it."""


def test_one_that_was_killed_goes_on_where_it_was(database, config, key, record, tmp_path,
                                                  make_staff):  # fmt: skip
    plays = [record()[1] for _ in range(4)]
    total = sum((config.episodes / play.file).stat().st_size for play in plays)
    target = tmp_path / "out"

    def die(done, _):
        if done >= 0.6 * total:
            raise Killed

    with pytest.raises(Killed):
        export(database, config, key, target, Terms(), die)
    assert not target.exists()
    part = tmp_path / "out.part"
    first = {path.name: path.stat().st_mtime_ns for path in (part / "episodes").iterdir()}
    assert 1 <= len(first) < 4
    # A line that was being written, and a review meanwhile of the first that is finished.
    with (part / export_part.JOURNAL).open("a") as journal:
        journal.write('{"play": "')
    finished = json.loads((part / export_part.JOURNAL).read_text().splitlines()[0])
    (again,) = [play for play in plays if play.id == finished["play"]]
    reviewed(database, again, make_staff("reviewer"))
    with pytest.raises(ConfigError, match="begun with other options"):
        export(database, config, key, target, Terms(min_quality=1))
    done = export(database, config, key, target, Terms())
    assert done.episodes == 4
    entries = {entry["uuid"]: entry for entry in manifest(target)["episodes"]}
    kept = {p.name for p in (target / "episodes").iterdir()
            if first.get(p.name) == p.stat().st_mtime_ns}  # fmt: skip
    assert len(kept) == len(first) - 1  # all but the one that was reviewed
    assert sorted(entry["labelled_rows"] for entry in entries.values()) == [0, 0, 0, 5]
    for entry in entries.values():
        assert hashlib.sha256((target / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert {p.name for p in target.iterdir()} == {
        "README.md", "manifest.json", "episodes", "labels", "consent",
    }  # fmt: skip


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_nothing_is_overwritten_and_two_do_not_meet(database, config, key, record, tmp_path):
    record()
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(ConfigError, match="exists"):
        run(database, config, key, target)
    target.rmdir()
    part = tmp_path / "out.part"
    part.mkdir()
    with export_part.locked(part), pytest.raises(ConfigError, match="another export"):
        run(database, config, key, target)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_full_disk_is_said_before(database, config, key, record, tmp_path, monkeypatch):
    record()
    monkeypatch.setattr(crowd_export, "ROOM", 1 << 60)
    with pytest.raises(ConfigError, match="no room"):
        run(database, config, key, tmp_path / "out")


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command_surveys_then_writes(config_file, record, tmp_path, capsys):
    record()
    words = ["crowd", "export", str(tmp_path / "out"), "--config", str(config_file)]
    assert main([*words, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["episodes"], said["path"], said["dry_run"]) == (1, None, True)
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 episodes by 1 contributors" in lines[0]
    assert json.loads(lines[-1])["bytes"] == said["bytes"]
    assert main(words) != 0
    with pytest.raises(SystemExit):  # what is given out was given for research, and nothing else
        main([*words, "--scope", "record"])
