"""What somebody has typed is text on every page: no tag, no attribute, no script of theirs.

The corpus is put into all texts of the site (names, tasks, clips, stations, notes, rewards, what
agents say), and every GET of the OpenAPI is asked by everybody who may.
"""

from __future__ import annotations

import html
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import pytest

from collect.crowd import badges, scoring
from collect.crowd.routes import kiosk as kiosk_routes
from collect.crowd.tables import (
    AuditEntry,
    Clip,
    ConsentText,
    HelpRequest,
    NicknameCase,
    Participant,
    Review,
    RewardItem,
    Station,
    TaskText,
    utc_now,
)
from tests.crowd import factories
from tests.crowd.security.conftest import Actor, Operation, World

DATABASES = ["sqlite"]
# Each holds `xq7`, which no page of ours has, where the browser would take it for its own.
CORPUS = (
    "<xq7>",
    "<b/xq7>",
    '"xq7=1 x="',
    "' xq7=1 x='",
    "`xq7=1`",
    "</title><xq7>",
    "</script><xq7>",
    "</style><xq7>",
    "--><xq7>",
    "]]><xq7>",
    "<img src=x xq7>",
    "<svg xq7>",
    "{{7*7}}<xq7>",
    "{%raw%}<xq7>",
    "&lt;xq7&gt;",
    "&#60;xq7&#62;",
    "\uff1cxq7\uff1e",
    "<scr<script>ipt xq7>",
    "javascript:xq7",
    "<a href=javascript:xq7>",
    "<math><mtext><xq7>",
    '"><xq7>',
    "'><xq7>",
    "<!--<xq7>",
    "\\u003cxq7\\u003e",
    "<xq7\n",
)
# All at once is what one page is asked for: where one of them gets through, it is seen.
TEXTS = (" ".join(CORPUS), " ".join(reversed(CORPUS)))


class _Page(HTMLParser):
    """Finds what a browser would make of a page, and what no page of ours may have."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if "xq7" in tag or any("xq7" in name for name in names):
            self.wrong.append(f"<{tag} {names}>")
        if any(name.startswith("on") or name == "style" for name in names):
            self.wrong.append(f"<{tag}> has {names}")
        for name, value in attrs:
            address = (value or "").strip().lower()
            if name in ("href", "src", "action", "formaction", "data", "srcset") and not (
                address.startswith(("/", "#", "data:image/svg+xml"))
                and not address.startswith("//")
            ):
                self.wrong.append(f"<{tag} {name}={address[:40]}>")
        if tag == "script" and "src" not in names:
            self.wrong.append("a script in the page")
        if tag in ("style", "base", "object", "embed", "iframe"):
            self.wrong.append(f"<{tag}>")

    def handle_comment(self, data: str) -> None:
        if "xq7" in data:
            self.wrong.append("a comment that somebody has typed")


def _fill(world: World, text: str) -> None:
    """``text`` in every place where somebody may type something, or could have."""
    with world.database.begin() as tx:
        ada = tx.get_one(Participant, world.ada.id)
        ada.nickname, ada.pseudonym = text, f"{text} too"
        bob = tx.get_one(Participant, world.bob.id)
        bob.nickname_state = "pending"
        tx.add(NicknameCase(participant_id=bob.id, nickname="Bob", reason=text))
        for language in ("en", "de"):
            words = tx.get_one(TaskText, (world.task.id, language))
            words.title, words.body = text, text * 3
            legal = tx.get_one(ConsentText, ("1", language))
            legal.title, legal.body = text, f"# {text}\n\n- {text}\n\n{text}"
        tx.get_one(Clip, world.ids["clip_id"]).caption = text
        tx.get_one(RewardItem, "candy").name = text
        station = tx.get_one(Station, world.here.id)
        station.name = text
        station.state = {
            "phase": text,
            "fault": text,
            "step": text,
            "warning": {"level": text, "between": text},
            "tutorial": {"step": text, "done": [text]},
        }
        tx.add(AuditEntry(action=text, subject=text, detail={text: text}))
        for review in tx.query(Review).filter(Review.play_id == world.ada_play.id):
            review.note, review.done_at = text, utc_now()
            review.decision, review.quality = "confirm", 3
        tx.add(HelpRequest(station_id=station.id))


@pytest.mark.parametrize("text", TEXTS, ids=["forwards", "backwards"])
def test_what_is_typed_is_text_on_every_page(
    text: str,
    world: World,
    operations: list[Operation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)
    with world.database.begin() as tx:
        for who in (world.ada, world.bob):
            scoring.claim(tx, factories.make_play(tx, who, tx.merge(world.here), world.task))
    actors = [world.as_(role) for role in ("participant", "kiosk", "admin")]
    wrong, seen = [], 0
    _fill(world, text)
    for actor in actors:
        for operation in operations:
            if operation.method != "GET":
                continue
            if "participant" not in operation.schemes and actor.role == "participant":
                continue  # a public page is seen by the kiosk
            answer = actor.get(world.path(operation))
            seen += "xq7" in html.unescape(answer.text)
            wrong += [f"{operation} as {actor.role}: {why}" for why in _wrong(answer)]
    assert seen >= 20, seen
    assert not wrong, "\n".join(sorted(set(wrong))[:30])


def _wrong(answer: httpx.Response) -> list[str]:
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/html"):
        return []  # never shown as a page: nosniff
    page = _Page()
    page.feed(answer.text)
    page.close()
    return page.wrong


def test_what_a_form_gives_back_is_text(world: World) -> None:
    """A refused form is shown again with what was typed, and errors name what was asked for."""
    ada, admin, nobody = world.as_("participant"), world.as_("admin"), world.as_("nobody")
    play = f"/staff/review/{world.ada_play.id}"
    reviewer: Actor = world.as_("reviewer")
    wrong = []
    for text in (*TEXTS, *CORPUS[:6]):
        typed = {"decision": "confirm", "quality": "", "segment_lines": text, "note": text}
        answers = [
            ada.post("/nickname", data={"nickname": text}),
            nobody.post("/staff/signin", data={"name": text, "password": text, "code": "1"}),
            nobody.post("/pair", data={"code": text}),
            nobody.get("/signin/phone", params={"link": text}),
            nobody.get("/board/all", params={"period": text}),
            nobody.get(f"/board/{quote(text.replace('/', ''))}"),
            nobody.get("/nothing", params={text: text}),
            reviewer.post(play, data=typed),
            admin.get("/staff/participants", params={"q": text}),
            admin.post("/staff/accounts", data={"name": text, "role": "reviewer"}),
            admin.post("/staff/stations/code", data={"name": text, "kind": "agent"}),
        ]
        for answer in answers:
            if answer.status_code != 429:
                wrong += [f"{answer.request.url}: {w}" for w in _wrong(answer)]
    assert not wrong, "\n".join(wrong)
    assert badges.BADGES  # their texts are the site's own
