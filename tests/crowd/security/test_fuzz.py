"""Requests that schemathesis makes up from the OpenAPI, as nobody and as each role.

No answer is a mistake of the site (500), and each has a status that the OpenAPI tells of.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from collect.crowd.routes import kiosk as kiosk_routes
from tests.crowd.security.conftest import ROLES, UNSAFE, World

EXAMPLES = 3
FUZZED = ("nobody", "participant", "kiosk", "agent", "reviewer", "operator", "admin")


# PostgreSQL refuses all that SQLite does, and more.
@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_nothing_that_is_made_up_is_a_mistake(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)
    schema = schemathesis.openapi.from_dict(world.app.openapi())
    wrong: set[str] = set()
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        security = operation.definition.raw.get("security", ())
        schemes = {name for one in security for name in one}
        roles = [role for role in FUZZED if ROLES[role] & schemes] or ["participant"]
        for role in ("nobody", *roles):
            complaints, requests = _fuzz(world, role, operation)
            wrong |= complaints
            tried += requests
    assert not wrong, "\n".join(sorted(wrong))
    assert tried > 500


def _fuzz(world: World, role: str, operation: Any) -> tuple[set[str], int]:
    actor = world.as_(role)
    documented = {int(status) for status in operation.definition.raw["responses"]}
    wrong: set[str] = set()
    tried = 0

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), real=st.booleans())
    def go(case: Any, real: bool) -> None:
        nonlocal tried
        if real:
            case.path_parameters = {name: world.ids[name] for name in case.path_parameters or {}}
        request = case.as_transport_kwargs(base_url="https://crowd.test")
        headers = {
            name: value
            for name, value in request.pop("headers").items()
            if name.lower() not in ("authorization", "connection")
        }
        cookies = request.pop("cookies", {})
        if operation.method.upper() in UNSAFE:
            headers.setdefault("x-csrf-token", actor.csrf(operation.path))
        if role == "nobody":  # others have cookies of their own
            cookies = dict(actor.client.cookies.items()) | cookies
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        try:
            answer = actor.client.request(**request, headers=headers)
        except (httpx.InvalidURL, UnicodeEncodeError):  # no browser could send it
            assume(False)
        tried += 1
        elsewhere = not real and case.path_parameters  # "a/b" is another route
        if answer.status_code not in documented | ({405} if elsewhere else set()):
            wrong.add(f"{operation.label} as {role}: {answer.status_code} {request}"[:500])

    go()
    return wrong, tried


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "\U0010ffff"])
def test_texts_that_a_database_may_not_keep(text: str, world: World) -> None:
    """Wherever a text goes into a query: said to be wrong, or not found; never a mistake."""
    sent = text.encode("utf-8", "replace").decode()
    nobody, admin, ada = world.as_("nobody"), world.as_("admin"), world.as_("participant")
    kiosk, agent = world.as_("kiosk"), world.as_("agent")
    staff = {"name": sent, "password": "x", "code": "1"}
    answers = [
        nobody.post("/staff/signin", data=staff),
        nobody.get(f"/board/task:{'%00' if text == chr(0) else 'x'}"),
        nobody.get("/api/board/task:%00"),
        nobody.get("/board/all", params={"period": sent}),
        nobody.post("/signin/phone", data={"link": sent}),
        nobody.post("/api/station/pair", csrf=None, json={"code": sent}),
        nobody.post("/api/station/pair", csrf=None, content=b'{"code": "\\ud800"}'),
        kiosk.post("/signin/card", data={"card": "1234567" + sent}),
        ada.post("/nickname", data={"nickname": "Ada" + sent}),
        ada.get("/tasks/%00"),
        ada.get("/signin/phone", params={"link": sent}),
        admin.get("/staff/participants", params={"q": sent}),
        admin.post("/staff/stations/code", data={"name": "x" + sent, "kind": "agent"}),
        admin.post("/staff/accounts", data={"name": "x" + sent, "role": "reviewer"}),
        admin.post("/staff/rewards/item", data={"item": "gum", "name": "x" + sent, "points": "5"}),
        admin.post(
            f"/staff/review/{world.ada_play.id}",
            data={"decision": "unclear", "note": "x" + sent},
        ),
        world.as_("reviewer").post(
            f"/staff/review/{world.ada_play.id}",
            data={"decision": "unclear", "note": "x" + sent},
        ),
        agent.post(
            "/api/station/heartbeat",
            csrf=None,
            json={"state": {"phase": "idle", "boot": "b" + sent, "n": 1, "fault": sent}},
        ),
    ]
    wrong = [f"{a.request.url}: {a.status_code}" for a in answers if a.status_code >= 500]
    assert not wrong
