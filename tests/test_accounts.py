"""Names as typed, changing one's name, deleting an account, and what administrators do with the accounts of others."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside import queries
from fireside.db import ago
from fireside.safety.logs import open_audit_log
from fireside.server import ROUTES

from .live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, code, good, until
from .system.faults.steps import blocked_writer
from .test_auth import NEW, execute
from .upstream import Gate, Upstream, pause
from .upstream import text as says

WRONG = "not the right phrase"
PNG = {
    "media_type": "image/png",
    "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==",
}


def audited(running: Running) -> list[tuple[str, str, str | None]]:
    """Return event, account and the account that it is about, for each line of audit.log."""
    lines = (running.config.data_dir / "audit.log").read_text("utf-8").splitlines()
    return [(line["event"], line["account"], line.get("about")) for line in map(json.loads, lines)]


@pytest.fixture
def log(running: Running) -> Iterator[Running]:
    """The running service, with its audit.log."""
    open_audit_log(running.config.data_dir)
    yield running
    logger = logging.getLogger("fireside.audit")
    for handler in logger.handlers.copy():
        logger.removeHandler(handler)
        handler.close()


async def rows_by_table(running: Running) -> dict[str, int]:
    tables = await execute(
        running,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '%words%' AND name NOT LIKE 'sqlite%'",
    )
    return {name: (await execute(running, f"SELECT count(*) FROM {name}"))[0][0] for (name,) in tables}


async def reset_link(admin: Person, user_id: int) -> str:
    token: str = good(await admin.post(f"/admin/users/{user_id}/reset-link"))["token"]
    return token


# ---- names


async def test_name_is_shown_as_typed_and_signs_in_in_any_form(running: Running) -> None:
    body = {"username": "  Änna  Smith ", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
    person = {"id": 1, "username": "änna smith", "display_name": "Änna Smith", "role": "admin"}
    assert good(await running.anybody().post("/admin/bootstrap", json=body))["user"] == person
    for name in ("Änna Smith", "änna smith", "A\u0308NNA\u00a0SMITH "):
        admin = await running.login(name)
        assert good(await admin.get("/auth/me"))["user"] == person
    owner = {"Authorization": f"Bearer {running.state.secret}"}
    for command in ("export", "import", "link", "tokens/list"):
        named: dict[str, Any] = {"username": "änna SMITH", "paths": []}
        answer = await running.anybody().post(f"/control/{command}", json=named, headers=owner)
        assert answer.status_code == 200, command
    [listed] = good(await admin.get("/admin/users"))["users"]
    assert person.items() <= listed.items() and listed["stored_bytes"] == 0
    invite = good(await admin.post("/admin/invites"))["invite_code"]
    for taken in ("ÄNNA SMITH", "a\u0308nna   smith"):
        body = {"username": taken, "password": PASSWORD, "invite_code": invite}
        assert code(await running.anybody().post("/auth/register", json=body)) == (409, "USERNAME_EXISTS")
    bob = good(await running.anybody().post("/auth/register", json=body | {"username": "Bob"}))["user"]
    assert (bob["username"], bob["display_name"]) == ("bob", "Bob")
    assert [one["used_by"] for one in good(await admin.get("/admin/invites"))["invites"]] == ["Bob"]
    await execute(running, "UPDATE users SET display_name = ''")  # as before there were display names
    assert good(await admin.get("/auth/me"))["user"]["display_name"] == "änna smith"


async def test_user_changes_the_name_with_the_password(log: Running, ann: Person, bob: Person) -> None:
    phone = await log.login("bob")
    change = {"username": "Bob O'Neill", "current_password": PASSWORD}
    wrong = await bob.post("/auth/name", json=change | {"current_password": WRONG})
    assert code(wrong) == (401, "INVALID_CREDENTIALS")
    for name, error in (("ANN", (409, "USERNAME_EXISTS")), ("a/b", (400, "VALIDATION_ERROR"))):
        assert code(await bob.post("/auth/name", json=change | {"username": name})) == error
    changed = good(await bob.post("/auth/name", json=change))
    assert changed == good(await bob.get("/auth/me"))
    assert (changed["user"]["username"], changed["user"]["display_name"]) == ("bob o'neill", "Bob O'Neill")
    good(await phone.get("/auth/me"))
    old = await log.anybody().post("/auth/login", json={"username": "bob", "password": PASSWORD})
    assert code(old) == (401, "INVALID_CREDENTIALS")
    await log.login("BOB O\u2019NEILL")
    good(await bob.post("/auth/name", json=change | {"username": "BOB o'neill"}))  # the capitals of one's own name
    assert [line for line in audited(log) if line[0] == "name changed"] == [
        ("name changed", "bob o'neill", "bob"),
        ("name changed", "bob o'neill", "bob o'neill"),
    ]
    bob = await log.join(ann, "bob")  # the old name is free
    good(await bob.post("/auth/password", json={"current_password": PASSWORD, "new_password": "bartholomew77x"}))
    weak = {"username": "Bartholomew", "current_password": "bartholomew77x"}
    assert code(await bob.post("/auth/name", json=weak)) == (400, "VALIDATION_ERROR")


@pytest.mark.usefixtures("frozen_throttle")
async def test_changing_the_name_reveals_few_names(running: Running, ann: Person, bob: Person) -> None:
    change, answers = {"current_password": PASSWORD}, []
    for _ in range(7):
        answers.append(code(await bob.post("/auth/name", json=change | {"username": "ann"})))
        await bob.post("/auth/name", json=change | {"username": "bob"})  # a success does not forget the guesses
    assert answers == [(409, "USERNAME_EXISTS")] * 6 + [(429, "RATE_LIMITED")]


async def test_addresses_of_a_user_stay_known_under_a_new_name_and_not_after_the_deletion(
    running: Running, ann: Person, bob: Person
) -> None:
    throttle, file = running.state.auth.throttle, running.config.data_dir / "known-addresses"
    assert throttle.is_known("bob", "127.0.0.1")
    good(await bob.post("/auth/name", json={"username": "Robert", "current_password": PASSWORD}))
    assert throttle.is_known("robert", "127.0.0.1") and not throttle.is_known("bob", "127.0.0.1")
    assert json.loads(file.read_text("utf-8")) == ["ann at 127.0.0.1", "robert at 127.0.0.1"]
    good(await bob.post("/auth/delete", json={"current_password": PASSWORD}))
    assert json.loads(file.read_text("utf-8")) == ["ann at 127.0.0.1"]


async def test_of_two_simultaneous_changes_that_exclude_each_other_one_succeeds(
    running: Running, ann: Person, bob: Person
) -> None:
    carl, eve = await running.join(ann, "carl"), await running.join(ann, "eve", "admin")
    for people, path, body in (
        ((bob, carl), "/auth/name", {"username": "Dora"}),
        ((ann, eve), "/auth/delete", {}),  # an administrator remains
    ):
        requests = (person.post(path, json=body | {"current_password": PASSWORD}) for person in people)
        assert sorted(answer.status_code for answer in await asyncio.gather(*requests)) == [200, 409]


# ---- deleting one's own account


@pytest.mark.usefixtures("log")
async def test_user_deletes_the_account_with_all_data(running: Running, ann: Person, bob: Person) -> None:
    before = await rows_by_table(running)
    kept = await ann.conversation("Ann's own")
    own = [await bob.conversation(f"Question {number}", title="Private") for number in range(3)]
    await bob.say(own[0], "This?", images=[PNG])
    good(await bob.delete(f"/conversations/{own[1]}"))
    good(await bob.patch("/defaults", json={"system_prompt": "Be brief."}))
    await running.state.auth.login_link("bob")
    phone = await running.login("bob")
    stored = good(await bob.get("/storage"))
    assert (stored["conversations"], stored["images"], stored["daily_backups"]) == (3, 1, 7)
    assert good(await ann.get("/storage"))["conversations"] == 1
    wrong = await bob.post("/auth/delete", json={"current_password": WRONG})
    assert code(wrong) == (401, "INVALID_CREDENTIALS")
    answer = await bob.post("/auth/delete", json={"current_password": PASSWORD})
    assert good(answer) == {"message": "Account deleted"} and "max-age=0" in answer.headers["set-cookie"].lower()
    for person in (bob, phone):
        assert code(await person.get("/auth/me")) == (401, "AUTH_REQUIRED")
    refused = await running.anybody().post("/auth/login", json={"username": "bob", "password": PASSWORD})
    assert code(refused) == (401, "INVALID_CREDENTIALS")
    assert [one["username"] for one in good(await ann.get("/admin/users"))["users"]] == ["ann"]
    assert len(await ann.messages(kept)) == 1
    good(await ann.delete(f"/conversations/{kept}?purge=true"))
    after = await rows_by_table(running)
    assert after == before | {"users": 1, "sessions": 1, "conversations": 0}
    assert await execute(running, "SELECT id, stored_bytes, closed_at FROM users") == [(1, 0, None)]
    assert ("account deleted", "bob", None) in audited(running)
    again = await running.join(ann, "bob")  # the name is free, and nothing of the old account is there
    assert good(await again.get("/conversations")) == [] and good(await again.get("/auth/me"))["user"]["id"] == 3


async def test_deletion_ends_the_running_answer(running: Running, ann: Person, bob: Person, upstream: Upstream) -> None:
    conversation_id = await bob.conversation("Hello?")
    upstream.enqueue(says("one"), pause(Gate()))
    good(
        await bob.post(
            "/chat/retry", json={"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "m"}
        )
    )
    await upstream.received()
    good(await bob.post("/auth/delete", json={"current_password": PASSWORD}))
    await upstream.closed()
    assert not running.state.hub.generations
    assert await execute(running, "SELECT count(*) FROM messages") == [(0,)]


async def test_last_administrator_cannot_delete_the_account(running: Running, ann: Person, bob: Person) -> None:
    conversation_id = await ann.conversation("Hello?")
    refused = await ann.post("/auth/delete", json={"current_password": PASSWORD})
    assert code(refused) == (409, "LAST_ADMIN")
    assert len(await ann.messages(conversation_id)) == 1
    good(await ann.patch("/admin/users/2", json={"role": "admin"}))
    good(await ann.post("/auth/delete", json={"current_password": PASSWORD}))
    assert good(await (await running.login("bob")).get("/admin/users"))["users"][0]["username"] == "bob"


async def test_repeated_deletion_is_refused(running: Running, ann: Person, bob: Person) -> None:
    phone = await running.login("bob")
    delete = {"current_password": PASSWORD}
    async with blocked_writer(running) as waiting:
        tasks = [asyncio.create_task(person.post("/auth/delete", json=delete)) for person in (bob, phone)]
        await until(lambda: waiting(2), "both passwords to be verified")
    assert sorted([(await task).status_code for task in tasks]) == [200, 404]


async def test_request_of_an_account_that_was_deleted_meanwhile_is_refused(
    running: Running, ann: Person, bob: Person
) -> None:
    """The requests have passed the check of the session, and write after the deletion."""
    async with blocked_writer(running) as waiting:
        deletion = asyncio.create_task(bob.post("/auth/delete", json={"current_password": PASSWORD}))
        await until(lambda: waiting(1), "the deletion to wait")
        late = [
            asyncio.create_task(bob.post("/conversations", json={"message": {"content": "Too late"}})),
            asyncio.create_task(bob.patch("/defaults", json={"system_prompt": "Too late"})),
        ]
        await until(lambda: waiting(3), "the requests to wait")
    good(await deletion)
    assert {(await request).status_code for request in late} <= {200, 401}
    await queries.accounts.remove_closed(running.state.database)  # as housekeeping does
    assert await execute(running, "SELECT username FROM users") == [("ann",)]
    assert await execute(running, "SELECT * FROM conversations") == []


async def test_request_that_writes_when_the_account_is_gone_gets_no_internal_error(
    running: Running, ann: Person, bob: Person
) -> None:
    async with blocked_writer(running) as waiting:
        removal = asyncio.create_task(execute(running, "DELETE FROM users WHERE id = 2"))
        await until(lambda: waiting(1), "the removal to wait")
        late = [
            asyncio.create_task(bob.post("/conversations", json={})),
            asyncio.create_task(bob.patch("/defaults", json={})),
        ]
        await until(lambda: waiting(3), "the requests to wait")
    await removal
    assert [code(await request) for request in late] == [(401, "AUTH_REQUIRED")] * 2


async def test_closed_account_is_not_found_and_gets_no_import(running: Running, ann: Person, bob: Person) -> None:
    await running.state.database.write(queries.accounts.close_account, 2)
    owner = {"Authorization": f"Bearer {running.state.secret}"}
    for name in ("bob", "#2"):  # a closed account is called by its number
        answer = await running.anybody().post("/auth/login", json={"username": name, "password": PASSWORD})
        assert code(answer) == (401, "INVALID_CREDENTIALS")
        answer = await running.anybody().post("/control/link", json={"username": name}, headers=owner)
        assert answer.status_code in (400, 404)
    moment = "2026-01-01T00:00:00.000000"
    file = running.config.data_dir / "import.json"
    message = {"id": 1, "parent_id": None, "role": "user", "content": "Q", "created_at": moment}
    one = {"fireside": 1, "title": "T", "created_at": moment, "updated_at": moment, "active_message_id": 1}
    file.write_text(json.dumps([one | {"messages": [message]}]), "utf-8")
    lines = [json.loads(line) async for line in running.state.importer.import_steps(2, [file])]
    assert lines[-1] == {"error": "There is no such user."}
    assert await execute(running, "SELECT * FROM conversations") == []


async def test_housekeeping_finishes_a_deletion_that_a_crash_ended(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        await bob.conversation("Hello?")
        await running.state.database.write(queries.accounts.close_account, 2)
    async with Running(tmp_path) as running:
        ann = await running.login("ann")
        assert [one["username"] for one in good(await ann.get("/admin/users"))["users"]] == ["ann"]
        await running.join(ann, "bob")
        await queries.accounts.remove_closed(running.state.database)
        assert await execute(running, "SELECT id FROM users") == [(1,), (3,)]
        assert await execute(running, "SELECT * FROM messages") == []


# ---- administrators


@pytest.mark.usefixtures("log")
async def test_reset_link_sets_a_password_once_and_ends_all_sessions(
    running: Running, ann: Person, bob: Person
) -> None:
    made = good(await ann.post("/admin/users/2/reset-link"))
    assert set(made) == {"token", "expires_at"}
    good(await bob.get("/auth/me"))
    weak = {"token": made["token"], "password": "password1234"}
    assert code(await running.anybody().post("/auth/reset", json=weak)) == (400, "VALIDATION_ERROR")
    body = {"token": made["token"], "password": NEW}
    browser = running.anybody()
    assert good(await browser.post("/auth/reset", json=body))["user"]["username"] == "bob"
    good(await browser.get("/auth/me"))
    assert code(await bob.get("/auth/me")) == (401, "AUTH_REQUIRED")
    assert code(await running.anybody().post("/auth/reset", json=body)) == (401, "INVALID_CREDENTIALS")
    old = await running.anybody().post("/auth/login", json={"username": "bob", "password": PASSWORD})
    assert code(old) == (401, "INVALID_CREDENTIALS")
    await running.login("bob", NEW)
    assert made["token"] not in (running.config.data_dir / "audit.log").read_text("utf-8")
    events = audited(running)
    assert ("reset link made", "ann", "bob") in events and ("password reset", "bob", None) in events


async def test_invalid_reset_link_is_refused_and_guessing_is_throttled(
    running: Running, ann: Person, bob: Person
) -> None:
    login = await running.state.auth.login_link("bob")
    replaced = await reset_link(ann, 2)
    token = await reset_link(ann, 2)
    for wrong in ("", "x" * 43, login, replaced):
        answer = await running.anybody().post("/auth/reset", json={"token": wrong, "password": NEW})
        assert code(answer) == (401, "INVALID_CREDENTIALS")
    assert code(await running.anybody().post("/auth/link", json={"token": token})) == (401, "INVALID_CREDENTIALS")
    await execute(running, "UPDATE login_links SET expires_at = ? WHERE resets_password = 1", ago(seconds=1))
    answer = await running.anybody().post("/auth/reset", json={"token": token, "password": NEW})
    assert code(answer) == (401, "INVALID_CREDENTIALS")
    good(await bob.get("/auth/me"))
    guess = {"token": "x", "password": NEW}
    while (await running.anybody().post("/auth/reset", json=guess)).status_code != 429:
        pass
    good(await running.anybody().post("/auth/reset", json=guess | {"token": await reset_link(ann, 2)}))


@pytest.mark.parametrize("how", ["disabled", "new password", "deleted"])
async def test_reset_link_ends_with_what_it_was_made_for(running: Running, ann: Person, bob: Person, how: str) -> None:
    token = await reset_link(ann, 2)
    if how == "disabled":
        await execute(running, "UPDATE users SET status = 'disabled' WHERE id = 2")  # keeps the link
        assert code(await ann.post("/admin/users/2/reset-link")) == (409, "USER_DISABLED")
    elif how == "new password":
        good(await bob.post("/auth/password", json={"current_password": PASSWORD, "new_password": NEW}))
    else:
        good(await ann.delete("/admin/users/2"))
    answer = await running.anybody().post("/auth/reset", json={"token": token, "password": NEW + "!"})
    assert code(answer) == (401, "INVALID_CREDENTIALS") and "set-cookie" not in answer.headers


async def test_of_two_simultaneous_uses_of_a_reset_link_one_succeeds(
    running: Running, ann: Person, bob: Person
) -> None:
    token = await reset_link(ann, 2)
    async with blocked_writer(running) as waiting:
        bodies = [{"token": token, "password": f"{NEW} {number}"} for number in range(2)]
        tasks = [asyncio.create_task(running.anybody().post("/auth/reset", json=body)) for body in bodies]
        await until(lambda: waiting(2), "both to be checked")
    statuses = [(await task).status_code for task in tasks]
    assert sorted(statuses) == [200, 401]
    await running.login("bob", f"{NEW} {statuses.index(200)}")


@pytest.mark.usefixtures("log")
async def test_administrator_deletes_a_user_without_seeing_the_data(running: Running, ann: Person, bob: Person) -> None:
    await bob.conversation("A secret question", title="Private")
    for response in (await ann.delete("/admin/users/1"), await ann.post("/admin/users/1/reset-link")):
        assert code(response) == (409, "OWN_ACCOUNT")
    [_, listed] = good(await ann.get("/admin/users"))["users"]
    assert listed["stored_bytes"] == len("A secret question")
    answer = await ann.delete("/admin/users/2")
    assert good(answer) == {"message": "User deleted"}
    assert code(await bob.get("/auth/me")) == (401, "AUTH_REQUIRED")
    for response in (await ann.delete("/admin/users/2"), await ann.post("/admin/users/2/reset-link")):
        assert code(response) == (404, "USER_NOT_FOUND")
    assert code(await ann.patch("/admin/users/2", json={"status": "active"})) == (404, "USER_NOT_FOUND")
    assert await execute(running, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM messages)") == [(1, 0)]
    assert ("user deleted", "ann", "bob") in audited(running)


def test_no_route_exports_the_data_of_another_user() -> None:
    """An administrator deletes a user's data without a copy: nobody else can read it."""
    for route in ROUTES:
        assert not ("{user_id}" in route.path and route.method == "GET"), route.name
