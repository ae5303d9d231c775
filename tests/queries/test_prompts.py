"""The queries of saved prompts and presets, and what new conversations begin with."""

import json
from typing import Any

import pytest
from fireside.db import Connection
from fireside.errors import AuthRequired, Invalid, NameExists, NotFound, QuotaExceeded
from fireside.queries import prompts, turns
from fireside.queries.prompts import Defaults, Preset

from .conftest import ANN, BOB, used


def save(conn: Connection, name: str = "Greeting", content: str = "Hello {{name}}", user_id: int = ANN) -> int:
    return prompts.add_saved(conn, user_id, prompts.Prompt, {"name": name, "content": content}).id


def preset(conn: Connection, name: str = "Brief", **fields: Any) -> Preset:
    return prompts.add_saved(conn, ANN, prompts.Preset, {"name": name} | fields)


def defaults(found: Defaults) -> tuple[str, Any, int | None, str | None]:
    return found.system_prompt, json.loads(bytes(found.settings)), found.preset_id, found.model


def test_names_are_unique_for_each_user_ignoring_case_and_spaces(conn: Connection) -> None:
    greeting, other = save(conn, "  Über \n uns "), save(conn, "Other")
    assert [prompt.name for prompt in prompts.list_saved(conn, ANN, prompts.Prompt)] == ["Other", "Über uns"]
    for name in ("über uns", "ÜBER  UNS", "U\u0308ber uns"):
        with pytest.raises(NameExists):
            save(conn, name)
        with pytest.raises(NameExists):
            prompts.change_saved(conn, ANN, prompts.Prompt, other, {"name": name})
        assert save(conn, name, user_id=BOB)
        conn.execute("DELETE FROM prompts WHERE user_id = ?", (BOB,))
    assert prompts.change_saved(conn, ANN, prompts.Prompt, greeting, {"name": "ÜBER UNS"}).name == "ÜBER UNS"
    assert preset(conn, "Other").name == "Other"
    with pytest.raises(NameExists):
        preset(conn, "other", system_prompt="Another")


def test_repeated_request_adds_nothing(conn: Connection) -> None:
    assert save(conn) == save(conn)
    fields: dict[str, Any] = {"system_prompt": "Be brief.", "settings": {"seed": 1}}
    assert preset(conn, **fields) == preset(conn, **fields)
    changes: list[dict[str, Any]] = [{"settings": {"seed": 2}}, {"system_prompt": ""}]
    for changed in changes:
        with pytest.raises(NameExists):
            preset(conn, **fields | changed)


def test_saved_texts_count_towards_the_limit(conn: Connection) -> None:
    before = used(conn)
    prompt_id = save(conn, content="Grüße")
    saved = preset(conn, system_prompt="Antworte kurz, für mich.")
    assert used(conn) == before + len("Grüße".encode()) + len("Antworte kurz, für mich.".encode())
    prompts.change_saved(conn, ANN, prompts.Prompt, prompt_id, {"content": "é"})
    prompts.change_saved(conn, ANN, prompts.Preset, saved.id, {"name": "Same text"})
    assert used(conn) == before + 2 + len("Antworte kurz, für mich.".encode())
    with pytest.raises(QuotaExceeded):
        prompts.change_saved(conn, ANN, prompts.Prompt, prompt_id, {"content": "x" * 1000}, 500)
    conn.execute("UPDATE users SET stored_bytes = stored_bytes - 998 WHERE id = ?", (ANN,))  # a request rolls back
    conn.execute("UPDATE prompts SET content = 'é' WHERE id = ?", (prompt_id,))
    prompts.delete_saved(conn, ANN, prompts.Prompt, prompt_id)
    prompts.delete_saved(conn, ANN, prompts.Preset, saved.id)
    assert used(conn) == before


@pytest.mark.parametrize("kind", [prompts.Prompt, prompts.Preset])
def test_number_of_saved_things_is_limited(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, kind: prompts.Kind
) -> None:
    monkeypatch.setattr(prompts, "MAX_SAVED", {"prompts": 3, "presets": 3})

    def add(name: str, user_id: int = ANN) -> int:
        return prompts.add_saved(conn, user_id, kind, {"name": name}).id

    ids = [add(str(number)) for number in range(3)]
    for name in ("4", "5"):
        with pytest.raises(Invalid, match="At most 3"):
            add(name)
    assert add("0") == ids[0] and add("4", BOB)
    prompts.delete_saved(conn, ANN, kind, ids[0])
    assert add("4") not in ids


def test_default_preset_is_what_new_conversations_begin_with(conn: Connection) -> None:
    assert defaults(prompts.get_effective_defaults(conn, ANN)) == ("", {}, None, None)
    assert prompts.get_first_preset(conn, ANN, None) is None
    prompts.set_defaults(conn, ANN, {"system_prompt": "Own", "settings": {"seed": 1}})
    brief = preset(conn, system_prompt="Be brief.", settings={"top_k": 2}, provider_id="lmstudio", model="m")
    other = preset(conn, "Other")
    assert defaults(prompts.set_defaults(conn, ANN, {"preset_id": brief.id})) == (
        "Be brief.",
        {"top_k": 2},
        brief.id,
        "m",
    )
    assert prompts.get_first_preset(conn, ANN, None) == prompts.get_saved(conn, ANN, prompts.Preset, brief.id)
    assert prompts.get_first_preset(conn, ANN, other.id) == other
    prompt, settings = turns.get_next_prompt(conn, ANN, None)
    assert (prompt.system_prompt, settings) == ("Be brief.", {"top_k": 2})
    assert prompts.get_first_preset(conn, BOB, None) is None
    assert defaults(prompts.get_effective_defaults(conn, BOB)) == ("", {}, None, None)
    theirs = prompts.add_saved(conn, BOB, prompts.Preset, {"name": "Brief"})
    prompts.set_defaults(conn, BOB, {"preset_id": theirs.id})
    assert defaults(prompts.set_defaults(conn, ANN, {}))[2] == brief.id
    assert [one.is_default for one in prompts.list_saved(conn, ANN, prompts.Preset)] == [True, False]
    assert defaults(prompts.set_defaults(conn, ANN, {"preset_id": other.id})) == ("", {}, other.id, None)
    assert [one.is_default for one in prompts.list_saved(conn, ANN, prompts.Preset)] == [False, True]
    assert prompts.get_effective_defaults(conn, BOB).preset_id == theirs.id
    prompts.delete_saved(conn, ANN, prompts.Preset, other.id)
    assert defaults(prompts.get_effective_defaults(conn, ANN)) == ("Own", {"seed": 1}, None, None)


def test_changing_one_default_keeps_the_other_of_the_preset(conn: Connection) -> None:
    """After PATCH /defaults, GET /defaults returns what was set, also if a preset was the default."""
    brief = preset(conn, system_prompt="Be brief.", settings={"top_k": 2}, provider_id="lmstudio", model="m")
    changes: list[tuple[dict[str, Any], Any]] = [
        ({"system_prompt": "Rhyme."}, ("Rhyme.", {"top_k": 2}, None, None)),
        ({"settings": {"seed": 1}}, ("Be brief.", {"seed": 1}, None, None)),
        ({"system_prompt": "Rhyme.", "preset_id": None}, ("Rhyme.", {"top_k": 2}, None, None)),
    ]
    for fields, expected in changes:
        prompts.set_defaults(conn, ANN, {"preset_id": brief.id})
        assert defaults(prompts.set_defaults(conn, ANN, fields)) == expected
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"preset_id": brief.id, "settings": {}}, Invalid),
        ({"preset_id": brief.id + 1}, NotFound),
    ]
    for fields, error in refused:
        before = conn.total_changes
        with pytest.raises(error):
            prompts.set_defaults(conn, ANN, fields)
        assert conn.total_changes == before
    with pytest.raises(NotFound):
        prompts.set_defaults(conn, BOB, {"preset_id": brief.id})


def test_everything_is_deleted_with_its_owner(conn: Connection) -> None:
    save(conn, user_id=BOB)
    theirs = prompts.add_saved(conn, BOB, prompts.Preset, {"name": "Brief"})
    prompts.set_defaults(conn, BOB, {"preset_id": theirs.id})
    kept = save(conn)
    conn.execute("UPDATE invites SET created_by = ?", (ANN,))
    conn.execute("DELETE FROM users WHERE id = ?", (BOB,))
    assert [row["id"] for row in conn.execute("SELECT id FROM prompts UNION ALL SELECT id FROM presets")] == [kept]


def test_imported_name_that_is_taken_gets_a_number(conn: Connection) -> None:
    def add(name: str, content: str) -> bool:
        return prompts.save_imported(conn, ANN, "prompts", {"name": name, "content": content})

    assert [add("Mail", "one"), add("mail", "one"), add("MAIL", "two"), add("Mail", "two")] == [
        True,
        False,
        True,
        False,
    ]
    assert add("Mail", "three")
    assert add("x" * 100, "one") and add("x" * 100, "two")
    names = [(one.name, one.content) for one in prompts.list_saved(conn, ANN, prompts.Prompt)]
    assert names[:3] == [("Mail", "one"), ("MAIL (2)", "two"), ("Mail (3)", "three")]
    assert names[3:] == [("x" * 96 + " (2)", "two"), ("x" * 100, "one")]


def test_account_deleted_while_a_prompt_is_sent_is_signed_out(conn: Connection) -> None:
    with pytest.raises(AuthRequired):
        save(conn, user_id=99)
