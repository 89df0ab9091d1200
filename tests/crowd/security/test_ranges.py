"""Hostile Range headers on what the site streams: clips (public) and review videos (staff).

Starlette's CVE-2025-62727: many ranges, or one that is long, cost quadratic time.
"""

from __future__ import annotations

import json
import time

import pytest

from collect.crowd import video
from tests.crowd.security.conftest import World

DATABASES = ["sqlite"]
CONTENT = bytes(range(256)) * 400
WHOLE = (
    "bytes=" + ",".join(f"{n}-{n}" for n in range(6000)),
    "bytes=" + ",".join("0-" for _ in range(9000)),
    "bytes=0-1,2-3",
    "bytes=" + "0" * 30_000 + "-",
    "bytes=" + "-" * 30_000,
    "bytes=" + " " * 30_000 + "0-1",
    "bytes=" + "0-,\t" * 8000,
    "bytes=5-2",
    "bytes=a-b",
    "bytes=--5",
    "bytes=1-2-3",
    "bytes=0x0-0x5",
    "items=0-5",
    "bytes",
    "bytes=",
    "bytes=-",
    "=0-1",
    "bytes=+1-+2",
    "bytes=1e3-",
)
ONE = {
    "bytes=0-9": (0, 10),
    "bytes=10-": (10, len(CONTENT)),
    "bytes=-7": (len(CONTENT) - 7, len(CONTENT)),
    "bytes=-999999999999": (0, len(CONTENT)),
    "bytes=5-999999999999999": (5, len(CONTENT)),
}
NOTHING = ("bytes=999999999-", f"bytes={len(CONTENT)}-", "bytes=999999999999999-999999999999999")


@pytest.mark.parametrize("what", ["clip", "review video"])
def test_one_range_or_the_whole_file_at_once(what: str, world: World) -> None:
    if what == "clip":
        (world.config.media / "clips" / "shown.mp4").write_bytes(CONTENT)
        actor, path = world.as_("nobody"), f"/clips/{world.ids['clip_id']}"
    else:
        folder = video.folder(world.config.media, world.ada_play.id)
        folder.mkdir(parents=True)
        (folder / "0.mp4").write_bytes(CONTENT)
        index = {"rate_hz": 25.0, "step": 1, "rows": 6, "cameras": {"cam_high": "0.mp4"}}
        (folder / video.INDEX).write_text(json.dumps(index))
        actor = world.as_("reviewer")
        path = f"/staff/review/{world.ada_play.id}/video/cam_high.mp4"
    began = time.process_time()
    for header in WHOLE:
        answer = actor.get(path, headers={"range": header})
        assert (answer.status_code, len(answer.content)) == (200, len(CONTENT)), header[:40]
        assert "multipart" not in answer.headers["content-type"]
    assert time.process_time() - began < 20
    for header, (first, end) in ONE.items():
        answer = actor.get(path, headers={"range": header})
        assert (answer.status_code, answer.content) == (206, CONTENT[first:end]), header
    for header in NOTHING:
        answer = actor.get(path, headers={"range": header})
        assert answer.status_code == 416 and len(answer.content) < 100, header
    twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")]
    assert actor.client.get(path, headers=twice).status_code == 200


@pytest.mark.parametrize(
    "camera",
    [
        "../index.json",
        "..%2findex.json",
        "%2e%2e/crowd.key",
        "0",
        "0.mp4",
        "cam_high\x00",
        "/etc/passwd",
    ],
)
def test_a_cameras_name_is_no_path(camera: str, world: World) -> None:
    folder = video.folder(world.config.media, world.ada_play.id)
    folder.mkdir(parents=True)
    (folder / "0.mp4").write_bytes(CONTENT)
    index = {"rate_hz": 25.0, "step": 1, "rows": 6, "cameras": {"cam_high": "0.mp4"}}
    (folder / video.INDEX).write_text(json.dumps(index))
    rita = world.as_("reviewer")
    answer = rita.get(
        f"/staff/review/{world.ada_play.id}/video/{camera.replace(chr(0), '%00')}.mp4"
    )
    assert answer.status_code in (303, 404, 422)
    assert CONTENT[:100] not in answer.content
