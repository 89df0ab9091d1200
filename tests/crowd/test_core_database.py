"""Transactions on both databases: one writer at a time, readers who can't write, what is away."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from collect.crowd import database as database_module
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.tables import RateCount, SiteVersion, Staff, WebSession, utc_now


def count_up(database, times):
    """Read, then write what was read and one: loses updates unless writers take turns."""
    for _ in range(times):
        with database.begin() as tx:
            row = tx.get(SiteVersion, 1)
            boards = row.boards
            tx.expire_all()
            tx.execute(text("UPDATE site_version SET boards = :n"), {"n": boards + 1})


def test_writers_take_turns_so_that_what_was_read_stays_true(database, database_url):
    with database.begin() as tx:
        tx.add(SiteVersion(id=1, boards=0))
    other = Database(database_url)  # as another worker process has
    threads = [
        threading.Thread(target=count_up, args=(each, 10))
        for each in (database, database, database, other, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    with database.read() as tx:
        assert tx.get(SiteVersion, 1).boards == 50


def test_a_block_that_raises_leaves_nothing(database):
    with pytest.raises(KeyError), database.begin() as tx:
        tx.add(SiteVersion(id=1, boards=7))
        tx.flush()
        raise KeyError
    with database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(SiteVersion)) == 0


def test_a_look_can_not_write(database):
    with pytest.raises(DBAPIError, match=r"read-?only"), database.read() as tx:
        tx.add(SiteVersion(id=1, boards=7))
        tx.flush()
    with database.begin() as tx:  # the connection is as good as before
        tx.add(SiteVersion(id=1, boards=8))
    with database.read() as tx:
        assert tx.get(SiteVersion, 1).boards == 8


def test_what_was_loaded_stays_readable(database):
    with database.begin() as tx:
        tx.add(SiteVersion(id=1, boards=7))
    with database.read() as tx:
        row = tx.get(SiteVersion, 1)
    assert row.boards == 7


def test_a_look_sees_one_moment(database):
    def count(tx):
        return tx.scalar(select(func.count()).select_from(RateCount))

    with database.read() as tx:
        assert count(tx) == 0
        with database.begin() as writer:
            writer.add(RateCount(key="a", count=1, expires_at=utc_now()))
        assert count(tx) == 0
    with database.read() as tx:
        assert count(tx) == 1


def test_begin_in_begin_is_refused_at_once(database):
    with (
        pytest.raises(RuntimeError, match="pass the session"),
        database.begin(),
        database.begin(),
    ):
        pass
    with database.begin():
        pass


def test_who_waits_too_long_is_told_so(database, database_url, monkeypatch):
    monkeypatch.setattr(database_module, "WAIT_S", 0.2)
    impatient = Database(database_url)
    with database.begin(), pytest.raises(DatabaseBusyError), impatient.begin():
        pass
    with impatient.begin():
        pass
    impatient.close()


def test_run_waits_for_its_turn(database, database_url, monkeypatch):
    monkeypatch.setattr(database_module, "WAIT_S", 0.1)
    impatient = Database(database_url)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with database.begin():
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    tried = []

    def work(tx):
        tried.append(True)
        tx.add(SiteVersion(id=1, boards=1))

    threading.Timer(0.5, leave.set).start()
    impatient.run(work, wait_s=30)
    holder.join(30)
    impatient.close()
    assert len(tried) == 1  # the turns that it did not get never began


def test_foreign_keys_hold(database):
    with pytest.raises(IntegrityError), database.begin() as tx:
        tx.add(
            WebSession(
                token_hash="x", kind="staff", staff_id="nobody", csrf="c", expires_at=utc_now()
            )
        )


def test_checks_hold_and_say_nothing_of_what_was_typed(database):
    with pytest.raises(IntegrityError) as caught, database.begin() as tx:
        tx.add(Staff(name="ada", role="emperor", password_hash="topsecret", totp_secret="s"))
    assert "topsecret" not in str(caught.value.__cause__ or caught.value).split("DETAIL")[0]


def test_a_mistake_in_a_statement_is_not_called_busy(database):
    with pytest.raises(DBAPIError), database.read() as tx:
        tx.execute(text("SELECT * FROM no_such_table"))


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_an_absent_database_is_away(tmp_path, database_kind):
    for url in (
        f"sqlite:///{tmp_path}/no/such/folder/crowd.db",
        f"postgresql://nobody@/crowd?host={tmp_path}",
    ):
        absent = Database(url)
        with pytest.raises(DatabaseBusyError), absent.read() as tx:
            tx.execute(text("SELECT 1"))
        with pytest.raises(DatabaseBusyError), absent.begin():
            pass
