"""Who may do what: every route of the OpenAPI, in every role, on every kind of object.

A route is open to nobody but those whose scheme it declares; what declares nothing is on the list
`PUBLIC`, by hand. A new route is in the matrix by being in the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route

from collect.crowd.routes import kiosk as kiosk_routes
from collect.crowd.tables import AuditEntry, Consent, LedgerEntry, Play, Review, ReviewVerdict
from tests.crowd import factories
from tests.crowd.security.conftest import ROLES, STAFF, Actor, Operation, World

DATABASES = ["sqlite"]
Make = Callable[..., Any]

# What anybody may ask for. Each has a reason to be here; a page that shows or changes anything of
# somebody's own has none.
PUBLIC = {
    # What this is, and how to come in.
    ("GET", "/"),
    ("GET", "/signin"),
    ("GET", "/signin/phone"),
    ("POST", "/signin/phone"),  # its secret is in the form
    ("GET", "/back"),
    ("POST", "/back"),  # its secret is in the form
    ("GET", "/pair"),
    ("POST", "/pair"),  # a one-time code is in the form
    ("POST", "/api/station/pair"),
    ("GET", "/staff/signin"),
    ("POST", "/staff/signin"),
    # Nothing but the browser's own cookies.
    ("POST", "/language"),
    ("POST", "/logout"),
    ("POST", "/staff/signout"),
    # Calls the staff to a paired kiosk's station; without a kiosk it does nothing.
    ("GET", "/help"),
    ("POST", "/help"),
    # The boards, and clips with their driver's consent.
    ("GET", "/board"),
    ("GET", "/board/{scope}"),
    ("GET", "/api/board/{scope}"),
    ("GET", "/clips/{clip_id}"),
    ("GET", "/clips/{clip_id}/{language}.vtt"),
}
# Routes that no OpenAPI tells of.
OUTSIDE = {"/health", "/metrics", "/api/board/{scope}/live", "/static"}


def test_whatever_declares_nothing_is_public_by_hand(operations: list[Operation]) -> None:
    open_to_all = {(o.method, o.path) for o in operations if not o.schemes}
    assert open_to_all == PUBLIC


def test_every_scheme_is_somebody(operations: list[Operation]) -> None:
    assert frozenset().union(*(o.schemes for o in operations)) == frozenset().union(*ROLES.values())


def test_the_openapi_tells_of_every_route(app: FastAPI, operations: list[Operation]) -> None:
    def walk(routes: list[Any]) -> set[str]:
        found = set()
        for route in routes:
            inner = getattr(getattr(route, "original_router", None), "routes", None)
            if inner is not None:
                found |= walk(inner)
            elif isinstance(route, Route | Mount):
                found.add(route.path)
        return found

    told = {operation.path for operation in operations}
    found = walk(app.routes)
    assert len(found) > 80
    assert found - told == OUTSIDE


def test_agents_routes_take_no_cookie_and_others_no_token(operations: list[Operation]) -> None:
    """Below /api/station no CSRF token is asked for: nothing there may look at a session."""
    for operation in operations:
        if operation.path.startswith("/api/station/"):
            assert operation.schemes <= {"agent"}, operation
        else:
            assert "agent" not in operation.schemes, operation


def test_a_route_refuses_whoever_it_is_not_for(
    world: World, operations: list[Operation], rows: Make
) -> None:
    tables = (AuditEntry, Consent, LedgerEntry, Play, Review, ReviewVerdict)
    before = [rows(table) for table in tables]
    wrong = []
    for role in ROLES:
        actor = world.as_(role)
        for operation in operations:
            if operation.schemes and not operation.schemes & ROLES[role]:
                answer = actor.send(operation, world.path(operation))
                expected = _refusal(operation, role)
                if not _is(answer, expected):
                    wrong.append(f"{role}: {operation}: {answer.status_code}, not {expected}")
    assert not wrong, "\n".join(wrong)
    assert [rows(table) for table in tables] == before


def test_a_route_lets_in_whom_it_is_for(
    world: World, operations: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)  # a stream has no end: 503 is past the gate
    wrong = []
    for operation in sorted(operations, key=_harm):
        for role in ROLES:
            if operation.schemes and not operation.schemes & ROLES[role]:
                continue
            answer = world.as_(role).send(operation, world.path(operation), data={})
            past = answer.status_code not in (401, 403, 500) or _refuses_some(operation, role)
            if not past or _to_sign_in(answer, operation):
                wrong.append(f"{role}: {operation}: {answer.status_code} {answer.headers}")
    assert not wrong, "\n".join(wrong)


def _harm(operation: Operation) -> tuple[bool, str]:
    """What ends or erases somebody comes last."""
    return operation.path.endswith(("erase", "withdraw", "disable", "renew")), operation.path


def _refusal(operation: Operation, role: str) -> tuple[int, str | None]:
    """What a role is told that has none of a route's schemes: status and where it is sent."""
    page = not operation.path.startswith("/api/")
    if "agent" in operation.schemes:
        return 401, None
    if "kiosk" in operation.schemes:
        return 403, None
    if "participant" in operation.schemes:
        return (303, "/signin") if page else (401, None)
    if ROLES[role] & STAFF:
        return 403, None
    return (303, "/staff/signin") if page else (401, None)


def _is(answer: httpx.Response, expected: tuple[int, str | None]) -> bool:
    return (answer.status_code, answer.headers.get("location")) == expected


def _to_sign_in(answer: httpx.Response, operation: Operation) -> bool:
    if operation.path in ("/signin/phone", "/staff/signout", "/signin/guest"):
        return False  # that is where these lead anyway
    return answer.headers.get("location") in ("/signin", "/staff/signin")


def _refuses_some(operation: Operation, role: str) -> bool:
    """An admin who has not been given the play may not say how it was."""
    review = operation.method == "POST" and operation.path == "/staff/review/{play_id}"
    return review and role == "admin"


# -- objects -------------------------------------------------------------------------------------


def test_another_participants_play_is_not_there(world: World, rows: Make) -> None:
    bob = world.as_("other participant")
    before = rows(Play), rows(LedgerEntry)
    mine = world.ada_play.id
    page = bob.get(f"/report?done={mine}")
    assert page.status_code == 303 and mine not in page.text
    said = {"play": mine, "success": "true", "intuitive": 5, "fun": 5, "did": 5}
    answer = bob.post("/report", data=said)
    assert answer.status_code == 303 and mine not in answer.headers["location"]
    assert (rows(Play), rows(LedgerEntry)) == before
    for path in ("/me", "/me/data", "/api/board/all/me"):
        assert "Ada" not in bob.get(path).text, path


def test_a_copy_of_ones_data_has_nothing_of_another(world: World) -> None:
    answer = world.as_("other participant").get("/me/data/copy.zip?episodes=true")
    assert answer.status_code == 200
    for foreign in (world.ada.id, world.ada_play.id, "Ada"):
        assert foreign.encode() not in answer.content


def test_another_participants_play_goes_on(world: World, database: Any, key: Any) -> None:
    """Only who drives ends a play; leaving takes nobody else's turn."""
    with database.begin() as tx:
        here = tx.merge(world.here)
        factories.make_lease(tx, here, world.ada)
        running = factories.make_play(
            tx,
            world.ada,
            here,
            world.task,
            state="running",
            ended_at=None,
            ended_by=None,
            claimed=None,
        )
    for role in ("other participant", "kiosk", "nobody", "reviewer"):
        actor = world.as_(role)
        for path in ("/play/stop", "/play/alive", "/queue/leave", "/logout"):
            actor.post(path)
    with database.read() as tx:
        assert tx.get_one(Play, running.id).state == "running"
    world.as_("participant").post("/play/stop")
    with database.read() as tx:
        assert tx.get_one(Play, running.id).state == "finished"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/station/play/{}/result"), ("PUT", "/api/station/play/{}/file")],
)
def test_another_stations_play_is_not_there(
    method: str, path: str, world: World, rows: Make
) -> None:
    before = rows(Play)
    body = {"ended_by": "button", "rows": 100, "checked": True, "sha256": "0" * 64}
    for role, play in (("other agent", world.ada_play), ("agent", world.bob_play)):
        options: dict[str, Any] = (
            {"json": body}
            if method == "POST"
            else {"content": b"\x89HDF\r\n\x1a\n", "headers": {"x-sha256": "0" * 64}}
        )
        answer = world.as_(role).request(method, path.format(play.id), csrf=None, **options)
        assert answer.status_code == 404, role
    assert rows(Play) == before


def test_a_token_that_was_replaced_is_nobodys(world: World) -> None:
    operation = Operation("POST", "/api/station/heartbeat", frozenset({"agent"}))
    body = {"state": {"phase": "idle", "boot": "b", "n": 1}}
    agent = world.as_("agent")
    assert agent.send(operation, operation.path, json=body).status_code == 200
    with world.database.begin() as tx:
        tx.merge(world.here).token_hash = world.key.mac("agent token", "a new one")
    assert agent.send(operation, operation.path, json=body).status_code == 401
    for header in ("Bearer ", "Basic x", "Bearer " + "x" * 200, "Bearer token of the agent", ""):
        agent.client.headers["authorization"] = header
        assert agent.send(operation, operation.path, json=body).status_code == 401, header


def test_another_reviewers_play_is_not_there(world: World, rows: Make) -> None:
    before = rows(Review), rows(ReviewVerdict), rows(LedgerEntry)
    play = world.bob_play.id
    rita: Actor = world.as_("reviewer")
    for path in (
        f"/staff/review/{play}",
        f"/api/staff/review/{play}",
        f"/api/staff/review/{play}/video",
        f"/staff/review/{play}/video/cam_high.mp4",
    ):
        assert rita.get(path).status_code == 404, path
        assert rita.get(path.replace(play, world.ada_play.id)).status_code in (200, 202, 503), path
    answer = rita.post(f"/staff/review/{play}", data={"decision": "confirm", "quality": "3"})
    assert answer.status_code == 404
    for path in (f"/staff/review/{play}/settle", f"/staff/review/{play}/gold"):
        assert rita.post(path, data={"chosen": play, "is_gold": "1"}).status_code == 403
    assert (rows(Review), rows(ReviewVerdict), rows(LedgerEntry)) == before


def test_a_reviewer_sees_no_name_and_no_other_review(world: World, database: Any) -> None:
    """Blind: neither who drove, nor what the other reviewer has said."""
    with database.begin() as tx:
        tx.add(
            Review(
                play_id=world.ada_play.id,
                staff_id=world.staff["other reviewer"].id,
                decision="reverse",
                quality=1,
                note="a note of the other one",
                done_at=world.ada_play.ended_at,
            )
        )
    rita = world.as_("reviewer")
    for path in (f"/staff/review/{world.ada_play.id}", f"/api/staff/review/{world.ada_play.id}"):
        text = rita.get(path).text
        for hidden in ("Ada", world.ada.id, world.ada.pseudonym, "note of the other"):
            assert hidden not in text, (path, hidden)


def test_a_disabled_account_is_out_at_once(world: World) -> None:
    rita = world.as_("reviewer")
    assert rita.get("/staff").status_code == 200
    with world.database.begin() as tx:
        tx.merge(world.staff["reviewer"]).disabled = True
    assert rita.get("/staff").headers["location"] == "/staff/signin"


def test_a_participants_session_of_a_kiosk_is_no_good_elsewhere(world: World) -> None:
    kiosk = world.as_("kiosk").sign_in(participant=world.ada)
    assert kiosk.get("/me").status_code == 200
    thief = world.as_("nobody")
    name = "__Host-participant"
    thief.set_cookie(name, kiosk.client.cookies[name])
    assert thief.get("/me").headers["location"] == "/signin"


def test_a_review_of_another_play_settles_nothing(world: World, rows: Make) -> None:
    before = rows(ReviewVerdict)
    with world.database.read() as tx:
        foreign = tx.query(Review).filter(Review.play_id == world.bob_play.id).one().id
    admin = world.as_("admin")
    path = f"/staff/review/{world.ada_play.id}/settle"
    assert admin.post(path, data={"chosen": foreign}).status_code == 404
    assert rows(ReviewVerdict) == before
