"""The application as a whole: guards that every request meets."""

from __future__ import annotations

from sqlalchemy import select

from collect.crowd.tables import Participant


def test_health(client):
    assert client.get("/health").json() == {"ok": True, "database": "ok"}


def test_what_a_factory_makes_is_in_the_applications_database(app, make_participant):
    ada = make_participant(nickname="Ada")
    with app.state.site.database.read() as tx:
        assert tx.scalar(select(Participant.id)) == ada.id
