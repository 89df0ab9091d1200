"""Nobody takes another's name: whatever looks like it is refused, and quickly.

Through the real route: CTFd's CVE-2020-7245 ("admin "), look-alike letters, invisible ones, and
texts that are made to keep a regular expression or a table busy.
"""

from __future__ import annotations

import time
import unicodedata

from confusable_homoglyphs.confusables import confusables_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collect.crowd.names import MAX_INPUT, MAX_NAME, skeleton
from collect.crowd.tables import Participant
from tests.crowd.security.conftest import World

DATABASES = ["sqlite"]
VICTIM = "Marie Curie 1"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u115f\u3164\ufe0f"
BOUND_S = 5.0  # a hang; each takes a millisecond


def _alike(character: str) -> list[str]:
    """Other characters that Unicode's tables say look like one."""
    found = {
        glyph["c"]
        for form in (character, character.upper(), character.lower())
        for glyph in confusables_data.get(form, ())
        if len(glyph["c"]) == 1
    }
    return [character, character.upper(), character.lower(), *sorted(found)]


@st.composite
def disguises(draw: st.DrawFn) -> str:
    """The victim's name as somebody would write it who wants to be taken for her."""
    text = ""
    for character in VICTIM:
        text += draw(st.sampled_from(_alike(character)))
        text += draw(st.sampled_from(["", "", "", "", " ", "\u0301", "\t", "-", ".", *INVISIBLE]))
    form = draw(st.sampled_from(["NFC", "NFD", "NFKD", "NFKC"]))
    return unicodedata.normalize(form, draw(st.sampled_from(["", " ", "\u00a0"])) + text)


def test_no_disguise_of_a_name_is_taken(world: World) -> None:
    with world.database.begin() as tx:
        row = tx.get_one(Participant, world.ada.id)
        row.nickname, row.skeleton = VICTIM, skeleton(VICTIM)
    mallory = world.as_("other participant")
    limiter = world.app.state.site.limiter

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(disguise=disguises())
    def go(disguise: str) -> None:
        limiter._shared.storage.reset()
        answer = mallory.post("/nickname", data={"nickname": disguise})
        assert answer.status_code == 422, ascii(disguise)

    go()
    for plain in ("marie curie 1", "MARIE CURIE 1 ", "Marie  Curie  1", "Marie-Curie.1"):
        limiter._shared.storage.reset()
        assert mallory.post("/nickname", data={"nickname": plain}).status_code == 422
    with world.database.read() as tx:
        assert tx.get_one(Participant, world.bob.id).nickname == "Bob"
        assert tx.get_one(Participant, world.ada.id).nickname == VICTIM
    limiter._shared.storage.reset()
    assert mallory.post("/nickname", data={"nickname": "Pierre"}).status_code == 303


def test_staff_are_not_to_be_mistaken(world: World) -> None:
    bob = world.as_("other participant")
    for name in ("admin ", "Аdmin", "ADMIN", "ad\u200bmin", "Staff", "ѕtaff"):
        world.app.state.site.limiter._shared.storage.reset()
        assert bob.post("/nickname", data={"nickname": name}).status_code == 422, ascii(name)


def test_a_text_that_keeps_the_site_busy_does_not(world: World) -> None:
    bob = world.as_("other participant")
    long = [
        "a" * MAX_INPUT,
        "a" * 60_000,
        " " * MAX_INPUT,
        ("rn" * MAX_INPUT)[:MAX_INPUT],
        "\u0301" * MAX_INPUT,
        "\ufdfa" * MAX_INPUT,  # eighteen characters each, by NFKC
        "\U0001d573" * MAX_INPUT,
        ("a." * MAX_INPUT)[:MAX_INPUT],
        ("-_" * MAX_INPUT)[:MAX_INPUT] + "!",
        "\u1e9b\u0323" * (MAX_INPUT // 2),
        ("Amber Otter " * MAX_INPUT)[:MAX_INPUT],
        "x" * MAX_NAME + "x",
    ]
    for text in long:
        world.app.state.site.limiter._shared.storage.reset()
        began = time.process_time()
        answer = bob.post("/nickname", data={"nickname": text})
        assert answer.status_code in (413, 422), (answer.status_code, text[:10])
        assert time.process_time() - began < BOUND_S, ascii(text[:10])


def test_other_inputs_have_an_end_too(world: World) -> None:
    """Whatever is typed has a cap; none of it costs more than its length."""
    admin, nobody, kiosk = world.as_("admin"), world.as_("nobody"), world.as_("kiosk")
    huge = "a" * 50_000
    began = time.process_time()
    answers = {
        "card": kiosk.post("/signin/card", data={"card": huge}),
        "pair": nobody.post("/pair", data={"code": huge}),
        "password": nobody.post("/staff/signin", data={"name": "x", "password": huge, "code": "1"}),
        "staff name": nobody.post(
            "/staff/signin", data={"name": huge, "password": "x", "code": "1"}
        ),
        "search": admin.get("/staff/participants", params={"q": huge[:3000]}),
        "note": admin.post(
            f"/staff/review/{world.ada_play.id}", data={"decision": "unclear", "note": huge}
        ),
        "segments": world.as_("reviewer").post(
            f"/staff/review/{world.ada_play.id}",
            data={"decision": "confirm", "quality": "3", "segment_lines": "1-2 play 3\n" * 2500},
        ),
        "language": nobody.post("/language", data={"language": "e" * 500, "next": huge}),
        "consent": world.as_("participant").post(
            "/consent", data={"version": "1", "language": "en", "scope": ["record"] * 50}
        ),
        "fields": nobody.post("/language", data={f"f{n}": "" for n in range(3000)}),
    }
    wrong = {name: a.status_code for name, a in answers.items() if a.status_code not in (400, 422)}
    assert not wrong
    assert time.process_time() - began < 10 * BOUND_S
