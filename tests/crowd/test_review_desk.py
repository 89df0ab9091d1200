"""The review desk over HTTP: what is whose to see, what a form does, videos by Range."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from collect.crowd import review
from collect.crowd.app import create_app
from collect.crowd.config import PointsConfig, ReviewConfig
from collect.crowd.tables import Play, ReviewSegment, ReviewVerdict, new_id
from collect.crowd.video import folder
from tests.collect.recorded import write_episode
from tests.crowd.browser import Browser
from tests.crowd.conftest import ORIGIN
from tests.crowd.test_ranges import HOSTILE

DATABASES = ["sqlite"]
ROWS = 60
LOOKED_AT_ONCE = "00000000-0000-4000-8000-000000000000"  # by the draw that follows from the id
VIDEO = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write_episode(tmp_path_factory.mktemp("desk") / "a.hdf5", rows=ROWS)


@pytest.fixture
def play(config, recorded, make_participant, make_station, make_task, make_play):
    """A synced play whose episode is there, and its videos."""
    shutil.copyfile(recorded, config.episodes / "a.hdf5")
    made = make_play(
        make_participant("Ada Lovelace"),
        make_station(),
        make_task(),
        id=LOOKED_AT_ONCE,
        state="synced",
        file="a.hdf5",
    )
    videos = folder(config.media, made.id)
    videos.mkdir(parents=True)
    (videos / "0.mp4").write_bytes(VIDEO)
    index = {"rate_hz": 25.0, "step": 2, "rows": ROWS, "cameras": {"cam_high": "0.mp4"}}
    (videos / "index.json").write_text(json.dumps(index))
    return made


@pytest.fixture
def reviewer(browser, make_staff):
    staff = make_staff("reviewer")
    browser.sign_in(staff=staff)
    return staff


def paths(play):
    return (
        f"/staff/review/{play.id}",
        f"/api/staff/review/{play.id}",
        f"/api/staff/review/{play.id}/video",
        f"/staff/review/{play.id}/video/cam_high.mp4",
    )


def form(**fields):
    return {
        "decision": "confirm",
        "quality": "3",
        "segment_lines": "0 19 play 0\n20 59 task 3",
        **fields,
    }


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_a_play_goes_from_the_queue_through_the_page_into_the_ledger_once(
    browser, database, reviewer, play
):
    answer = browser.post("/staff/review/next")
    assert answer.headers["location"] == f"/staff/review/{play.id}"
    page = browser.get(answer.headers["location"]).text
    assert "Ada Lovelace" not in page, "a reviewer is told who played"
    for _ in range(2):
        done = browser.post(f"/staff/review/{play.id}", data=form(note="well done"))
        assert (done.status_code, done.headers["location"]) == (303, "/staff/review")
    with database.read() as tx:
        verdict = tx.get(ReviewVerdict, play.id)
        labels = review.labels(tx, play)
        assert len(tx.scalars(select(ReviewSegment)).all()) == 2
    assert (verdict.decision, verdict.quality) == ("confirm", 3)
    assert labels.label.tolist() == ["play"] * 20 + ["task"] * 40
    after = browser.get(f"/staff/review/{play.id}").text
    assert "well done" in after and "data-commit" in after and 'data-editable="no"' in after
    assert browser.post("/staff/review/next").headers["location"] == "/staff/review"


def test_reviewers_see_what_is_assigned_to_them_and_admins_all(browser, make_staff, play):
    other = make_staff("reviewer")
    browser.sign_in(staff=other)
    for path in paths(play):
        assert browser.get(path).status_code == 404, path
    assert browser.post(f"/staff/review/{play.id}", data=form()).status_code == 404
    browser.post("/staff/review/next")
    for path in paths(play):
        assert browser.get(path).status_code == 200, path
    browser.sign_in(staff=make_staff("admin"))
    for path in paths(play):
        assert browser.get(path).status_code == 200, path
    assert browser.post(f"/staff/review/{play.id}", data=form()).status_code == 403
    browser.sign_in(staff=make_staff("operator"))
    for path in (*paths(play), "/staff/review", "/staff/agreement", "/api/staff/agreement"):
        assert browser.get(path).status_code == 403, path


def test_void_plays_are_nobodys(browser, database, make_staff, play):
    browser.sign_in(staff=make_staff("admin"))
    with database.begin() as tx:
        tx.get(Play, play.id).state = "void"
    for path in paths(play):
        assert browser.get(path).status_code == 404, path


def test_a_second_reviewer_does_not_see_what_the_first_said(
    browser, database, make_staff, play, config
):
    first, second = make_staff("reviewer"), make_staff("reviewer")
    with database.begin() as tx:
        twice = ReviewConfig(double_share=1.0)
        for staff in (first, second):
            assert review.next_play(tx, staff, twice).id == play.id
        mine = review.assignment(tx, play.id, first)
        review.commit(
            tx, mine, "reverse", 1, (), PointsConfig(), rows=ROWS, note="SEEN", desk=twice
        )
    browser.sign_in(staff=second)
    for path in (*paths(play)[:2], "/staff/review"):
        text = browser.get(path).text
        assert "SEEN" not in text and first.name not in text and first.id not in text
    browser.sign_in(staff=make_staff("admin"))
    where = f"/staff/review/{play.id}"
    assert "SEEN" not in browser.get(where).text, "an admin may be the third to look"
    with database.begin() as tx:
        mine = review.assignment(tx, play.id, second)
        review.commit(tx, mine, "reverse", 1, (), PointsConfig(), rows=ROWS, desk=twice)
    page = browser.get(where).text
    assert "SEEN" in page and first.name in page


def test_what_is_wrong_is_said_and_what_was_typed_stays(browser, database, reviewer, play):
    browser.post("/staff/review/next")
    where = f"/staff/review/{play.id}"
    for wrong in (
        {"quality": ""},
        {"segment_lines": "0 60 task 3"},
        {"segment_lines": "0 10 nap 3"},
        {"segment_lines": "nonsense"},
        {"segment_lines": "0 10 play 3"},
    ):
        answer = browser.post(where, data=form(note="my words", **wrong))
        assert answer.status_code == 422
        assert "my words" in answer.text and "data-commit" in answer.text
        assert wrong.get("segment_lines", "20 59 task 3") in answer.text
    for wrong in (
        {"decision": "maybe"},
        {"quality": "4"},
        {"segment_lines": "0 1 play 0\n" * 5000},
        {"note": "x" * 501},
    ):
        assert browser.post(where, data=form(**wrong)).status_code == 422
    with database.read() as tx:
        assert review.assignment(tx, play.id, reviewer).done_at is None


def test_notes_are_text(browser, make_staff, play):
    browser.sign_in(staff=make_staff("admin"))
    browser.post("/staff/review/next")
    note = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>"
    assert browser.post(f"/staff/review/{play.id}", data=form(note=note)).status_code == 303
    page = browser.get(f"/staff/review/{play.id}").text
    assert "<script>alert" not in page and "<img src=x" not in page


def test_the_data_are_the_episodes(browser, reviewer, play):
    browser.post("/staff/review/next")
    data = browser.get(f"/api/staff/review/{play.id}").json()
    assert (data["rows"], data["rate_hz"], data["stride"]) == (ROWS, 50.0, 1)
    assert data["cameras"] == ["cam_high", "cam_low"]
    assert [joint["name"] for joint in data["joints"]][:2] == ["left/waist", "left/shoulder"]
    for joint in data["joints"]:
        assert len(joint["values"]) == ROWS
        assert min(joint["values"]) == 0.0 and max(joint["values"]) == 1.0
    assert {flag["kind"] for flag in data["flags"]} == {"short", "fault"}


def test_the_play_after_this_one_is_read_before_somebody_asks(
    browser, config, reviewer, play, make_participant, make_station, make_play
):
    after = make_play(make_participant(), make_station(), state="synced", file="a.hdf5")
    answer = browser.post("/staff/review/next")
    now = answer.headers["location"].rpartition("/")[2]
    (later,) = {play.id, after.id} - {now}
    read = [(folder(config.media, one) / "view.json").exists() for one in (now, later)]
    assert read == [False, True]


def test_files_outside_the_episodes_and_damaged_ones_are_not_read(
    browser, database, config, reviewer, play, recorded
):
    browser.post("/staff/review/next")
    shutil.copyfile(recorded, config.episodes.parent / "outside.hdf5")
    (config.episodes / "link.hdf5").symlink_to(config.episodes.parent / "outside.hdf5")
    (config.episodes / "cut.hdf5").write_bytes(recorded.read_bytes()[:9000])
    (config.episodes / "text.hdf5").write_text("no episode")
    shutil.rmtree(folder(config.media, play.id))
    for file in (
        "../outside.hdf5",
        "link.hdf5",
        "/etc/passwd",
        "none.hdf5",
        "cut.hdf5",
        "text.hdf5",
    ):
        with database.begin() as tx:
            tx.get(Play, play.id).file = file
        assert browser.get(f"/api/staff/review/{play.id}").status_code == 404, file
        assert browser.get(f"/staff/review/{play.id}").status_code == 200, file
    answer = browser.post(
        f"/staff/review/{play.id}", data=form(decision="unclear", segment_lines="")
    )
    assert answer.status_code == 303, "a play whose file is damaged is stuck"


def test_no_range_is_costly_and_no_camera_is_a_path(browser, reviewer, play):
    browser.post("/staff/review/next")
    where = f"/staff/review/{play.id}/video/cam_high.mp4"
    whole = browser.get(where)
    assert (whole.status_code, whole.content) == (200, VIDEO)
    assert whole.headers["content-type"] == "video/mp4"
    part = browser.get(where, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, VIDEO[100:200])
    assert browser.get(where, headers={"range": f"bytes={len(VIDEO)}-"}).status_code == 416
    start = time.process_time()
    for header in HOSTILE:
        if not header.isascii() or "\0" in header:
            continue
        answer = browser.get(where, headers={"range": header})
        assert (answer.status_code, len(answer.content)) == (200, len(VIDEO)), header[:40]
    assert time.process_time() - start < 10.0
    for camera in ("..%2f..%2f..%2fcrowd.key", "0", "index", "%00", "x" * 100, "cam_low"):
        answer = browser.get(f"/staff/review/{play.id}/video/{camera}.mp4")
        assert answer.status_code in (404, 422), camera


def test_who_asks_for_too_many_videos_is_told_to_wait(
    config, recorded, make_staff, make_participant, make_station, make_play
):
    app = create_app(dataclasses.replace(config, review=ReviewConfig(video_queue=1)))
    shutil.copyfile(recorded, config.episodes / "a.hdf5")
    ada, station = make_participant(), make_station()
    plays = [make_play(ada, station, state="synced", file="a.hdf5") for _ in range(4)]
    with TestClient(app, base_url=ORIGIN, follow_redirects=False) as client:
        browser = Browser(app, client)
        browser.sign_in(staff=make_staff("admin"))
        answers = [browser.get(f"/api/staff/review/{play.id}/video") for play in plays]
        states = [answer.status_code for answer in answers]
        assert states[0] == 202 and answers[0].json()["state"] == "making"
        assert states[-1] == 503 and int(answers[-1].headers["retry-after"]) > 0
        assert browser.get(f"/api/staff/review/{plays[0].id}/video").status_code == 202
        video = browser.get(f"/staff/review/{plays[0].id}/video/cam_high.mp4")
        assert video.status_code == 503 and "retry-after" in video.headers
    app.state.site.database.close()


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_admins_settle_disputes_and_make_gold(browser, database, make_staff, play):
    staff = [make_staff("reviewer") for _ in range(3)]
    said = (("confirm", 2), ("reverse", 0), ("unclear", None))
    twice = ReviewConfig(double_share=1.0)
    for who, (decision, quality) in zip(staff, said, strict=True):
        with database.begin() as tx:
            assert review.next_play(tx, who, twice).id == play.id
            mine = review.assignment(tx, play.id, who)
            review.commit(tx, mine, decision, quality, (), PointsConfig(), rows=ROWS, desk=twice)
    chosen = mine_of(database, play, staff[0])
    browser.sign_in(staff=staff[0])
    for path, data in (
        (f"/staff/review/{play.id}/settle", {"chosen": chosen}),
        (f"/staff/review/{play.id}/gold", {"is_gold": "true"}),
    ):
        assert browser.post(path, data=data).status_code == 403
    assert browser.get("/staff/disputes").status_code == 403
    answer = browser.get("/api/staff/agreement").json()
    assert (answer["plays"], answer["same"], answer["table"][2][0]) == (1, 0, 1)
    assert "gold" not in answer
    browser.sign_in(staff=make_staff("admin"))
    assert play.id in browser.get("/staff/disputes").text
    gold = {"is_gold": "true"}
    assert browser.post(f"/staff/review/{play.id}/gold", data=gold).status_code == 409
    wrong = browser.post(f"/staff/review/{play.id}/settle", data={"chosen": new_id()})
    assert wrong.status_code == 404
    assert browser.post(f"/staff/review/{play.id}/settle", data={"chosen": chosen}).is_redirect
    assert play.id not in browser.get("/staff/disputes").text
    with database.read() as tx:
        assert tx.get(ReviewVerdict, play.id).decision == "confirm"
    assert browser.post(f"/staff/review/{play.id}/gold", data=gold).is_redirect
    assert browser.get("/api/staff/agreement").json()["gold"] == []
    assert re.search(r"quality: 1\b", browser.get("/staff/agreement").text)
    for language in ("en", "de"):
        for path in (f"/staff/review/{play.id}", "/staff/disputes", "/staff/agreement"):
            answer = browser.get(path, headers={"accept-language": language})
            assert answer.status_code == 200


def mine_of(database, play, staff):
    with database.read() as tx:
        return review.assignment(tx, play.id, staff).id
