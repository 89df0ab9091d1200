"""No foreign page writes: every unsafe route of the OpenAPI wants this session's own token."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from collect.crowd.security.csrf import FIELD, HEADER
from collect.crowd.tables import Base
from tests.crowd.security.conftest import ROLES, UNSAFE, Actor, Operation, World

DATABASES = ["sqlite"]
FOREIGN = (
    {"origin": "https://evil.test"},
    {"origin": "null"},
    {"origin": "https://crowd.test.evil.test"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)


def _targets(operations: list[Operation]) -> list[tuple[Operation, str]]:
    """Every unsafe route of browsers, with a role that may use it."""
    found = []
    for operation in operations:
        if operation.method not in UNSAFE or operation.path.startswith("/api/station/"):
            continue
        role = next(
            (role for role, schemes in ROLES.items() if schemes & operation.schemes), "participant"
        )
        found.append((operation, role))
    assert len(found) > 35
    return found


def test_a_write_without_the_sessions_own_token_is_refused(
    world: World, operations: list[Operation], rows: Callable[[type[Any]], list[Any]]
) -> None:
    """In a form and as JSON, in the header and in the field: none, another session's, nonsense."""
    tables = [mapper.class_ for mapper in Base.registry.mappers]
    actors = {role: world.as_(role) for role in ROLES}
    strangers = {"participant": world.as_("participant"), "staff": world.as_("admin")}
    before = {table: rows(table) for table in tables}
    wrong = []
    for operation, role in _targets(operations):
        path = world.path(operation)
        other = strangers["staff" if path.startswith("/staff") else "participant"]
        for token in (None, "", "x" * 43, other.csrf(path)):
            for name, options in _ways(token):
                answer = actors[role].request(operation.method, path, csrf=None, **options)
                if answer.status_code != 403:
                    wrong.append(f"{operation} by {name}, token {token!r}: {answer.status_code}")
    assert not wrong, "\n".join(wrong)
    assert {table: rows(table) for table in tables} == before


def _ways(token: str | None) -> list[tuple[str, dict[str, Any]]]:
    field = {} if token is None else {FIELD: token}
    header = {} if token is None else {HEADER: token}
    plain = {"content-type": "text/plain"}
    return [
        ("form field", {"data": {"a": "1", **field}}),
        ("JSON and header", {"json": {"a": 1}, "headers": header}),
        ("JSON that says it is text", {"content": json.dumps(field), "headers": plain | header}),
    ]


def test_a_foreign_page_may_not_write_even_with_the_token(
    world: World, operations: list[Operation]
) -> None:
    actors = {role: world.as_(role) for role in ROLES}
    wrong = []
    for operation, role in _targets(operations):
        for headers in FOREIGN:
            answer = actors[role].request(
                operation.method, world.path(operation), headers=headers, data={"a": "1"}
            )
            if answer.status_code != 403:
                wrong.append(f"{operation} from {headers}: {answer.status_code}")
    assert not wrong, "\n".join(wrong)


def test_a_token_is_good_for_its_own_kind_of_session_only(world: World) -> None:
    """Who is staff and takes part in one browser: a participant's page does nothing as staff."""
    both = world.as_("participant").sign_in(staff=world.staff["admin"])
    hide = f"/staff/participants/{world.bob.id}"
    assert both.post(hide, csrf=both.csrf("/me"), data={"hidden": "true"}).status_code == 403
    assert both.post("/me/board", csrf=both.csrf("/staff"), data={}).status_code == 403
    assert both.post(hide, data={"hidden": "true"}).status_code == 303


def test_nobody_is_signed_in_by_a_foreign_page(world: World) -> None:
    """Login CSRF: before a sign-in the token is that of the browser's own visit."""
    nobody, other = world.as_("nobody"), world.as_("nobody")
    form = {"name": "x", "password": "y", "code": "1"}
    for token in (None, other.csrf("/staff/signin"), ""):
        assert nobody.post("/staff/signin", csrf=token, data=form).status_code == 403
    assert nobody.post("/staff/signin", data=form).status_code == 401


def test_an_agents_routes_heed_no_cookie(world: World) -> None:
    """They ask for no token, so a browser's session must be worth nothing there."""
    for role in ("admin", "kiosk", "participant"):
        actor: Actor = world.as_(role)
        for path in ("heartbeat", f"play/{world.ada_play.id}/result"):
            answer = actor.post(f"/api/station/{path}", csrf=None, json={"state": {}})
            assert answer.status_code == 401, (role, path)


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "CONNECT", "POSTT"]
)
def test_another_method_does_nothing(method: str, world: World) -> None:
    """A write is not to be had by a method that the guard takes for a look."""
    ada = world.as_("participant")
    override = {"x-http-method-override": "POST", "x-method-override": "POST"}
    for path in ("/me/data/erase", "/play/stop", "/logout", "/consent"):
        form = {"word": "erase", "_method": "POST"}
        answer = ada.request(method, path, headers=override, data=form)
        assert answer.status_code in (400, 405, 501), (method, path)
    assert ada.get("/me").status_code == 200


def test_tokens_are_long_and_never_the_same(world: World) -> None:
    tokens = {world.as_("participant").csrf() for _ in range(20)}
    assert len(tokens) == 20
    assert all(len(base64.urlsafe_b64decode(token + "=")) == 32 for token in tokens)
