"""Consent: by version and scope, taken back, asked again."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from collect.crowd import consent
from collect.crowd.consent import ConsentError
from collect.crowd.i18n import LOCALES
from collect.crowd.tables import Consent, ConsentText, utc_now
from robot_stack.cli import main

NEW = {"en": ("Anew", "Some words."), "de": ("Neu", "Ein paar Worte.")}


def give(database, participant, *scopes, version="1", at=None):
    with database.begin() as tx:
        return consent.give(tx, participant, version, "en", scopes, at)


def holding(database, participant):
    with database.read() as tx:
        return consent.valid(tx, participant)


def test_the_default_text_is_in_every_language_and_says_what_it_must(database):
    with database.read() as tx:
        texts = {folder.name: consent.current(tx, folder.name) for folder in LOCALES.iterdir()}
        assert consent.current(tx, "fr").language == "en"
    assert {name: text.language for name, text in texts.items()} == {"en": "en", "de": "de"}
    for text in texts.values():
        kinds = [kind for kind, _ in consent.blocks(text.body)]
        assert kinds.count("heading") == 5
        assert kinds.count("list") == 2
        scopes = [items for kind, items in consent.blocks(text.body) if kind == "list"][1]
        assert len(scopes) == len(consent.SCOPES)
    assert "No sound" in texts["en"].body
    assert "18" in texts["de"].body


def test_blocks_read_paragraphs_headings_and_lists():
    body = "One\nline.\n\n# Head\n- a\n  b\n- c\n\nLast - not a list.\n"
    assert consent.blocks(body) == [
        ("paragraph", ["One line."]),
        ("heading", ["Head"]),
        ("list", ["a b", "c"]),
        ("paragraph", ["Last - not a list."]),
    ]


def test_who_consents_has_consent_and_giving_it_twice_is_once(database, make_participant):
    ada = make_participant()
    assert holding(database, ada) is None
    first = give(database, ada, "record", "research")
    assert holding(database, ada).id == first.id
    assert first.scopes == ["record", "research"]
    assert give(database, ada, "research", "record").id == first.id
    assert holding(database, make_participant()) is None


@pytest.mark.parametrize(
    ("scopes", "version", "says"),
    [
        (["research"], "1", "record"),
        (["record", "fame"], "1", "'fame'"),
        (["record"], "0", "isn't in force"),
    ],
)
def test_what_is_no_consent_is_refused(database, make_participant, scopes, version, says):
    ada = make_participant()
    with pytest.raises(ConsentError, match=says):
        give(database, ada, *scopes, version=version)
    assert holding(database, ada) is None


def test_a_later_version_asks_again(database, make_participant):
    ada = make_participant()
    old = give(database, ada, "record")
    tomorrow = utc_now() + dt.timedelta(days=1)
    with database.begin() as tx:
        consent.add(tx, "2", NEW, tomorrow)
    assert holding(database, ada).id == old.id
    with database.read() as tx:
        assert consent.current(tx, "de", tomorrow).title == "Neu"
        assert consent.valid(tx, ada, tomorrow) is None
        assert consent.covers(tx.get_one(Consent, old.id), "record")  # what was played stays
    give(database, ada, "record", version="2", at=tomorrow)
    with database.read() as tx:
        assert consent.valid(tx, ada, tomorrow).version == "2"
    with pytest.raises(ConsentError, match="isn't in force"):
        give(database, ada, "record", "clips", version="1", at=tomorrow)


def test_a_version_that_was_agreed_to_never_changes(database):
    with pytest.raises(ConsentError, match="words can't change"), database.begin() as tx:
        consent.add(tx, "1", NEW)


def test_a_version_must_come_after_the_others(database):
    with pytest.raises(ConsentError, match="later than the others"), database.begin() as tx:
        consent.add(tx, "0.5", NEW, utc_now() - dt.timedelta(days=1))


def test_a_scope_is_taken_back_alone_and_recording_with_all(database, make_participant):
    ada = make_participant()
    given = give(database, ada, "record", "research", "clips")
    with database.begin() as tx:
        assert [row.id for row in consent.withdraw(tx, ada, ["research"])] == [given.id]
        assert consent.withdraw(tx, ada, ["research"]) == []
    held = holding(database, ada)
    assert [consent.covers(held, scope) for scope in consent.SCOPES] == [True, False, True]
    assert list(held.withdrawn) == ["research"]
    with database.begin() as tx:
        consent.withdraw(tx, ada, ["record"])
    assert holding(database, ada) is None
    with database.read() as tx:
        row = tx.get_one(Consent, given.id)
    assert row.withdrawn_at is not None
    assert not any(consent.covers(row, scope) for scope in consent.SCOPES)
    with pytest.raises(ConsentError, match="'fame'"), database.begin() as tx:
        consent.withdraw(tx, ada, ["fame"])


def test_agreeing_to_less_takes_the_rest_back_from_before(database, make_participant):
    ada = make_participant()
    first = give(database, ada, "record", "research", "clips")
    second = give(database, ada, "record", "clips")
    with database.read() as tx:
        before, after = tx.get_one(Consent, first.id), tx.get_one(Consent, second.id)
    assert not consent.covers(before, "research")
    assert consent.covers(before, "clips")
    assert consent.covers(after, "clips")
    assert not consent.covers(after, "clips", after.given_at - dt.timedelta(seconds=1))
    # Agreeing to research again doesn't reach back.
    third = give(database, ada, "record", "research", "clips")
    with database.read() as tx:
        assert not consent.covers(tx.get_one(Consent, first.id), "research")
        assert consent.covers(tx.get_one(Consent, third.id), "research")


def test_who_was_erased_cannot_consent(database, make_participant):
    ada = make_participant(erased_at=utc_now())
    with pytest.raises(ConsentError, match="erased"):
        give(database, ada, "record")


def test_without_a_text_it_says_what_to_do(database):
    with database.begin() as tx:
        tx.query(ConsentText).delete()
        with pytest.raises(ConsentError, match="consent add"):
            consent.current(tx, "en")
        assert consent.install_default(tx)
        assert not consent.install_default(tx)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command_adds_lists_and_shows(config_file, tmp_path, capsys):
    def command(*words):
        code = main(["crowd", "consent", *words, "--config", str(config_file)])
        return code, capsys.readouterr()

    _, shown = command("show")
    text = tmp_path / "text.yaml"
    text.write_text(shown.out.replace('"1"', '"2"'))
    code, said = command("add", str(text), "--json")
    assert code == 0
    assert json.loads(said.out)["languages"] == ["de", "en"]
    code, said = command("list", "--json")
    versions = json.loads(said.out)["versions"]
    assert [(row["version"], row["in_force"]) for row in versions] == [("1", False), ("2", True)]
    _, again = command("show")
    assert again.out == shown.out.replace('"1"', '"2"')  # what is shown is what was added
    code, said = command("add", str(text))
    assert code != 0
    assert "words can't change" in said.err
    text.write_text("version: 3\ntexts: {en: {title: A, body: B}}\n")
    code, said = command("add", str(text))
    assert "no text in de" in said.err


def test_a_text_that_came_with_an_upgrade_is_told_of_until_a_version_is_added(
    config_file, database, browser, make_staff, tmp_path, capsys
):
    """Also to a site whose own text was written beside the old one."""
    told = "show --shipped"

    def listed():
        assert main(["crowd", "consent", "list", "--config", str(config_file)]) == 0
        return capsys.readouterr().out

    def home(role):
        browser.sign_in(staff=make_staff(role))
        return browser.get("/staff").text

    def upgraded(digest):
        """Since the texts were added, the shipped one has changed."""
        with database.begin() as tx:
            for text in tx.query(ConsentText):
                text.body, text.shipped = text.body + " Before.", digest

    assert told not in listed() + home("admin")
    for digest in (None, "0" * 64):
        upgraded(digest)
        assert told in listed() and told in home("admin") and told not in home("operator")
        with database.begin() as tx:
            consent.add(tx, f"own {digest}"[:8].replace(" ", "-"), NEW)
        assert told not in listed() + home("admin")
    with database.begin() as tx:
        tx.query(ConsentText).delete()
        assert consent.outdated(tx) is None, "there is none to be older"
    capsys.readouterr()
    assert main(["crowd", "consent", "show", "--shipped", "--config", str(config_file)]) == 0
    text = tmp_path / "text.yaml"
    text.write_text(capsys.readouterr().out.replace('""', '"4"'))
    assert consent.read_texts(text) == ("4", consent.shipped())


def test_a_site_from_before_that_has_the_shipped_text_is_told_nothing(database):
    with database.begin() as tx:
        for text in tx.query(ConsentText):
            text.shipped = None
        assert consent.outdated(tx) is None
