"""Signing in: names, passwords, throttling, sessions, CSRF tokens, invites and links.

Fifty simultaneous first accounts, invites and demotions are in tests/trust/races.py, every route by role in tests/trust/authz.py,
timing in tests/trust/timing.py."""

import asyncio
import contextlib
import http.cookies
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argon2
import httpx
import pytest
from fireside import auth
from fireside.auth import HASH_QUEUE_LENGTH, HASH_QUEUE_LENGTH_PER_KEY, Auth, Visitor
from fireside.db import ago
from fireside.errors import Invalid, RateLimited
from fireside.safety.passwords import check_password, clean_username
from fireside.safety.queue import Slots
from fireside.safety.throttle import Throttle
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Clock
from .live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, code, good, until
from .system.faults.steps import blocked_writer
from .upstream import Gate, Upstream, pause
from .upstream import text as says

WRONG = {"password": "not the right phrase"}
NEW = "another long phrase"


async def execute(running: Running, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run SQL on the database of the running service."""
    return await running.state.database.write(lambda conn: [tuple(row) for row in conn.execute(sql, values)])


# ---- names and passwords


def test_user_name_is_normalized() -> None:
    for typed, name in (
        ("  Ann ", "ann"),
        ("\uff21\uff2e\uff2e", "ann"),  # full width
        ("A\u0308", "ä"),
        ("STRASSE", "strasse"),
        ("a.b_c-9", "a.b_c-9"),
        ("李雷", "李雷"),
        (" Änna \u00a0 Smith", "änna smith"),
        ("O\u2019Brien", "o'brien"),
    ):
        assert clean_username(typed) == clean_username(name) == name
    for name in ("", " ", "x" * 65, "#7", "a@b", "a/b", "a\0", "\u202eann", "<b>", "a\u200bb", "ann\u3164", "🔥"):
        with pytest.raises(Invalid, match="The name must"):
            clean_username(name)


COMMON = (
    "password1234", "Password123!", "123456789012", "letmeinletmein", "administrator1", "correcthorsebatterystaple",
)  # fmt: skip
LISTED = ("lovelovelove", "sonyericsson", "Manchesterunited", "1qaz2wsx3edc4rfv")  # in passwords.txt
GOOD = (
    PASSWORD, "Kettle drum 9 rivers", "pässwörter sind geheim", "9f2c7a1be04d", "我的密码很长很安全真的是的", "bartholomew77x",
)  # fmt: skip


def test_weak_password_is_refused_and_a_good_one_is_not() -> None:
    weak = [(password, "ann") for password in ("", "eleven char", "x" * 257, "annannannann", "Ann-2026-ann")]
    weak += [(password, "ann") for password in (*COMMON, *LISTED)]
    weak += [("Bartholomew77x", "bartholomew"), ("annasmithson7", "anna smithson")]
    for password, name in weak:
        with pytest.raises(Invalid, match="password"):
            check_password(password, name)
    for password in GOOD:
        check_password(password, "ann")


@given(st.text(min_size=12, max_size=256), st.text(min_size=1, max_size=64))
def test_any_text_is_a_valid_or_invalid_password(password: str, name: str) -> None:
    with contextlib.suppress(Invalid):
        check_password(password, name)


# ---- the throttle


@pytest.mark.usefixtures("frozen_throttle")
async def test_simultaneous_guesses_are_throttled_like_successive_ones(running: Running, ann: Person) -> None:
    wrong = {"username": "ann", "password": WRONG["password"]}
    answers = await together(50, lambda _: running.anybody().post("/auth/login", json=wrong))
    assert answers.count((401, "INVALID_CREDENTIALS")) == 6 and answers.count((429, "RATE_LIMITED")) == 44


async def test_simultaneous_right_passwords_all_sign_in(running: Running, ann: Person) -> None:
    body = {"username": "ann", "password": PASSWORD}
    assert await together(20, lambda _: running.anybody().post("/auth/login", json=body)) == [(200, "")] * 20


@pytest.mark.costly
async def test_known_address_is_not_delayed_by_a_thousand_strangers(running: Running, ann: Person) -> None:
    log_in, home = running.state.auth.login, Visitor("", "192.0.2.1", None)
    await log_in("ann", PASSWORD, home)

    async def guess(number: int) -> None:
        await log_in(f"user{number}", WRONG["password"], Visitor("", f"10.0.{number // 250}.{number % 250}", None))

    strangers = [asyncio.create_task(guess(number)) for number in range(1000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [task for task in strangers if not task.done()]
    assert len(waiting) <= HASH_QUEUE_LENGTH + 1, "the others were refused immediately"
    assert all(isinstance(task.exception(), RateLimited) for task in strangers if task.done())
    await log_in("ann", PASSWORD, home)
    assert sum(task.done() for task in waiting) <= 10, "Ann's hash did not wait for theirs"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*strangers, return_exceptions=True)


async def test_known_addresses_survive_a_restart(tmp_path: Path) -> None:
    settings = {"trusted_proxies": "127.0.0.1"}
    home, elsewhere = {"X-Forwarded-For": "127.0.0.3"}, {"X-Forwarded-For": "127.0.0.4"}
    right = {"username": "ann", "password": PASSWORD}
    async with Running(tmp_path, **settings) as running:
        await running.first()
        good(await running.anybody().post("/auth/login", json=right, headers=home))
    async with Running(tmp_path, **settings) as running:
        stranger = running.anybody()
        while (await stranger.post("/auth/login", json=right | WRONG, headers=elsewhere)).status_code != 429:
            pass
        good(await running.anybody().post("/auth/login", json=right, headers=home))
    (tmp_path / "known-addresses").write_text("[1, ", "utf-8")
    async with Running(tmp_path, **settings) as running:
        good(await running.anybody().post("/auth/login", json=right, headers=home))


async def test_signing_in_does_not_sync_a_file_on_the_event_loops_thread(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: threads.append(threading.current_thread()))
    running.state.auth.throttle.known.clear()
    await running.login("ann")
    assert threads and threading.main_thread() not in threads


async def test_guessing_is_throttled_and_others_can_sign_in(clock: Clock, running: Running, bob: Person) -> None:
    stranger = running.anybody()
    body = {"username": "carl", "password": WRONG["password"]}
    for _ in range(6):
        assert code(await stranger.post("/auth/login", json=body)) == (401, "INVALID_CREDENTIALS")
    refused = await stranger.post("/auth/login", json=body)
    assert code(refused) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    good(await bob.get("/auth/me"))
    await running.login("bob")  # from an address where bob has signed in before
    clock.late += 2
    assert code(await stranger.post("/auth/login", json=body)) == (401, "INVALID_CREDENTIALS")


@pytest.mark.usefixtures("frozen_throttle")
async def test_guessing_the_bootstrap_token_is_throttled(running: Running) -> None:
    stranger = running.anybody()
    body = {"username": "eve", "password": PASSWORD, "token": "x"}
    answers = [code(await stranger.post("/admin/bootstrap", json=body)) for _ in range(7)]
    assert answers == [(403, "INVALID_BOOTSTRAP_TOKEN")] * 6 + [(429, "RATE_LIMITED")]


# ---- login


@pytest.mark.usefixtures("frozen_throttle")
async def test_all_failed_logins_look_the_same(running: Running, ann: Person, bob: Person) -> None:
    good(await ann.patch("/admin/users/2", json={"status": "disabled"}))
    answers = set()
    for name, password in (
        ("bob", PASSWORD),  # right, but disabled
        ("nobody", PASSWORD),
        ("ann", WRONG["password"]),
        ("", ""),
        ("a b", "x" * 900),
    ):
        answer = await running.anybody().post("/auth/login", json={"username": name, "password": password})
        assert "set-cookie" not in answer.headers
        answers.add((answer.status_code, answer.json()["code"], answer.json()["message"]))
        running.state.auth.throttle = Throttle()
    assert len(answers) == 1
    right = {"username": "bob", "password": PASSWORD}
    statuses = [(await running.anybody().post("/auth/login", json=right)).status_code for _ in range(7)]
    assert statuses == [401] * 6 + [429], "a disabled user is throttled like a wrong password"


@pytest.mark.costly
async def test_passwords_are_stored_as_argon2id_and_sessions_as_digests(running: Running, ann: Person) -> None:
    [row] = await execute(running, "SELECT password_hash FROM users")
    assert row[0].startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    cookie = next(iter(ann.cookies.jar)).value
    assert cookie is not None
    files = [file for file in running.config.data_dir.rglob("*") if file.is_file()]
    content = b"".join(file.read_bytes() for file in files)
    for secret in (cookie, cookie.rpartition(".")[0], PASSWORD, ann.headers["X-CSRF-Token"]):
        assert secret.encode() not in content


# ---- cookies and sessions


async def test_cookie_is_http_only_and_same_site(running: Running, ann: Person) -> None:
    answer = await running.anybody().post("/auth/login", json={"username": "ann", "password": PASSWORD})
    [header] = answer.headers.get_list("set-cookie")
    [(name, morsel)] = http.cookies.SimpleCookie(header).items()
    assert name == f"fireside_{running.url.rpartition(':')[2]}"
    assert morsel["httponly"] and morsel["samesite"].lower() == "strict" and morsel["path"] == "/"
    assert not morsel["domain"] and not morsel["secure"]
    assert int(morsel["max-age"]) == 90 * 86400


async def test_cookie_on_https_is_secure_and_host_only(tmp_path: Path) -> None:
    async with Running(tmp_path, trusted_proxies="127.0.0.1", public_url="https://chat.example.org") as running:
        client = running.anybody()
        headers = {"Host": "chat.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
        body = {"username": "ann", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
        answer = await client.post(
            "/admin/bootstrap", json=body, headers=headers | {"Origin": "https://chat.example.org"}
        )
        good(answer)
        [header] = answer.headers.get_list("set-cookie")
        [(name, morsel)] = http.cookies.SimpleCookie(header).items()
        assert name == "__Host-fireside" and morsel["secure"] and morsel["path"] == "/" and not morsel["domain"]
        headers["Cookie"] = f"{name}={morsel.value}"
        assert good(await client.get("/auth/me", headers=headers))["user"]["username"] == "ann"
        # The same cookie is not accepted on plain http.
        assert code(await client.get("/auth/me", headers=headers | {"X-Forwarded-Proto": "http"}))[0] == 401


async def test_forged_cookie_is_not_a_session(running: Running, ann: Person) -> None:
    [cookie] = ann.cookies.jar
    assert cookie.value is not None
    token, _, signature = cookie.value.rpartition(".")
    client = running.anybody()
    for value in (
        "",
        token,
        f"{token}.",
        f"{token}.{'x' if signature[0] != 'x' else 'y'}{signature[1:]}",
        f"{token[:-1]}x.{signature}",
        f"x.{cookie.value}",
        f"\xff{cookie.value}",
        "x" * 8000,
        '"' + cookie.value,
    ):
        headers = [(b"cookie", f"{cookie.name}={value}".encode("latin-1"))]
        assert code(await client.get("/auth/me", headers=headers)) == (401, "AUTH_REQUIRED"), value
    wrong_name = {"Cookie": f"fireside_1={cookie.value}"}
    assert code(await client.get("/auth/me", headers=wrong_name)) == (401, "AUTH_REQUIRED")


async def test_session_survives_a_restart_but_not_a_new_key(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Running(data) as running:
        [cookie] = (await running.first()).cookies.jar
    for expected in (200, 401):
        async with Running(data) as running:
            name = f"fireside_{running.url.rpartition(':')[2]}"
            answer = await running.anybody().get("/auth/me", headers={"Cookie": f"{name}={cookie.value}"})
            assert answer.status_code == expected
        (data / "session-key").unlink()


async def test_logout_ends_the_session_on_the_server(running: Running, ann: Person) -> None:
    other = await running.login("ann")
    [cookie] = ann.cookies.jar
    answer = await ann.post("/auth/logout")
    good(answer)
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    replayed = {"Cookie": f"{cookie.name}={cookie.value}"}
    assert code(await running.anybody().get("/auth/me", headers=replayed)) == (401, "AUTH_REQUIRED")
    good(await other.get("/auth/me"))


async def test_session_in_use_stays_seen(running: Running, ann: Person) -> None:
    await execute(running, "UPDATE sessions SET last_seen = ?", ago(days=29))
    good(await ann.get("/auth/me"))
    [session] = good(await ann.get("/auth/sessions"))["sessions"]
    assert session["last_seen"] > ago(minutes=1)


async def test_login_replaces_the_session_of_the_cookie(running: Running, ann: Person) -> None:
    [before] = [cookie.value for cookie in ann.cookies.jar]
    again = good(await ann.post("/auth/login", json={"username": "ann", "password": PASSWORD}))
    [after] = [cookie.value for cookie in ann.cookies.jar]
    assert before != after and again["csrf_token"] != ann.headers["X-CSRF-Token"]
    assert len(await execute(running, "SELECT * FROM sessions")) == 1


async def test_user_lists_and_ends_other_sessions(running: Running, ann: Person, bob: Person) -> None:
    phone = await running.login("ann")
    shown = good(await ann.get("/auth/sessions"))["sessions"]
    assert [set(session) for session in shown] == [{"id", "client", "created_at", "last_seen", "current"}] * 2
    [other] = [session["id"] for session in shown if not session["current"]]
    assert code(await bob.delete(f"/auth/sessions/{other}")) == (404, "SESSION_NOT_FOUND")
    good(await phone.get("/auth/me"))
    assert good(await ann.delete(f"/auth/sessions/{other}")) == {"message": "Session ended"}
    assert code(await phone.get("/auth/me"))[0] == 401
    assert code(await ann.delete(f"/auth/sessions/{other}")) == (404, "SESSION_NOT_FOUND")


# ---- what ends sessions and answers


async def test_new_password_ends_all_other_sessions_and_login_links(running: Running, ann: Person) -> None:
    phone, link = await running.login("ann"), await running.state.auth.login_link(None)
    wrong = {"current_password": WRONG["password"], "new_password": NEW}
    assert code(await ann.post("/auth/password", json=wrong)) == (401, "INVALID_CREDENTIALS")
    weak = {"current_password": PASSWORD, "new_password": "password1234"}
    assert code(await ann.post("/auth/password", json=weak)) == (400, "VALIDATION_ERROR")
    good(await phone.get("/auth/me"))
    right = {"current_password": PASSWORD, "new_password": NEW}
    assert good(await ann.post("/auth/password", json=right)) == {"message": "Password changed"}
    good(await ann.get("/auth/me"))
    assert code(await phone.get("/auth/me"))[0] == 401
    for path, body in (("/auth/login", {"username": "ann", "password": PASSWORD}), ("/auth/link", {"token": link})):
        assert code(await running.anybody().post(path, json=body)) == (401, "INVALID_CREDENTIALS")
    await running.login("ann", NEW)


async def test_new_role_or_status_takes_effect_immediately(running: Running, ann: Person, bob: Person) -> None:
    for change in ({"role": "user"}, {"status": "disabled"}, {"role": "user", "status": "disabled"}):
        assert code(await ann.patch("/admin/users/1", json=change)) == (409, "LAST_ADMIN")
    changed = good(await ann.patch("/admin/users/2", json={"role": "admin"}))
    assert (changed["username"], changed["role"], changed["status"]) == ("bob", "admin", "active")
    assert code(await bob.get("/auth/me"))[0] == 401
    bob = await running.login("bob")
    good(await bob.get("/admin/users"))
    good(await ann.patch("/admin/users/2", json={"status": "disabled"}))
    assert code(await bob.get("/auth/me"))[0] == 401
    refused = await running.anybody().post("/auth/login", json={"username": "bob", "password": PASSWORD})
    assert code(refused) == (401, "INVALID_CREDENTIALS")
    good(await ann.patch("/admin/users/2", json={"role": "user", "status": "active"}))
    assert code(await (await running.login("bob")).get("/admin/users")) == (403, "FORBIDDEN")


@pytest.mark.parametrize("how", ["disabled", "logged out"])
async def test_end_of_the_last_session_cancels_generations(
    running: Running, ann: Person, bob: Person, upstream: Upstream, how: str
) -> None:
    conversation_id = await bob.conversation("Hello?")
    upstream.enqueue(says("one"), pause(Gate()))
    body = {"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "m"}
    good(await bob.post("/chat/retry", json=body))
    await upstream.received()
    if how == "disabled":
        good(await ann.patch("/admin/users/2", json={"status": "disabled"}))
    else:
        phone = await running.login("bob")
        good(await bob.post("/auth/logout"))
        assert running.state.hub.generations, "the phone still has a session"
        good(await phone.post("/auth/logout"))
    await upstream.closed()
    assert not running.state.hub.generations


# ---- races


async def together(count: int, request: Callable[[int], Any]) -> list[tuple[int, str]]:
    answers: list[httpx.Response] = await asyncio.gather(*(request(number) for number in range(count)))
    return [(200, "") if answer.status_code == 200 else code(answer) for answer in answers]


@pytest.mark.parametrize("what", ["login", "link", "password"])
async def test_sign_in_in_progress_fails_when_the_password_is_reset(running: Running, ann: Person, what: str) -> None:
    state = running.state
    client, path, body = {
        "login": (running.anybody(), "/auth/login", {"username": "ann", "password": PASSWORD}),
        "link": (running.anybody(), "/auth/link", {"token": await state.auth.login_link("ann")}),
        "password": (ann, "/auth/password", {"current_password": PASSWORD, "new_password": "the password of a thief"}),
    }[what]
    begin: list[Callable[[], Any]] = [
        lambda: state.auth.reset_password("ann", NEW),
        lambda: client.post(path, json=body),
    ]
    if what == "link":  # a reset deletes links, so this one must be redeemed first
        begin.reverse()
    async with blocked_writer(running) as waiting:
        tasks = []
        for number, beginning in enumerate(begin, 1):
            tasks.append(asyncio.create_task(beginning()))
            await until(lambda number=number: waiting(number), "the old password to be verified")
    answer = next(result for result in await asyncio.gather(*tasks) if isinstance(result, httpx.Response))
    assert code(answer) == (401, "INVALID_CREDENTIALS") and "set-cookie" not in answer.headers
    assert await execute(running, "SELECT * FROM sessions") == []
    await running.login("ann", NEW)


async def test_two_simultaneous_logins_that_rehash_the_password_both_succeed(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_HASHER", argon2.PasswordHasher(time_cost=2, memory_cost=64, parallelism=1))
    body = {"username": "ann", "password": PASSWORD}
    async with blocked_writer(running) as waiting:
        logins = [asyncio.create_task(running.anybody().post("/auth/login", json=body)) for _ in range(2)]
        await until(lambda: waiting(2), "both to be verified")
    assert [(await login).status_code for login in logins] == [200, 200]
    [[stored]] = await execute(running, "SELECT password_hash FROM users")
    assert "t=2" in stored


# ---- invites, links, the first account


async def test_invite_is_shown_once_and_works_once(running: Running, ann: Person) -> None:
    made = good(await ann.post("/admin/invites", json={"role": "admin", "expires_in_hours": 1}))
    shown = await ann.get("/admin/invites")
    assert made["invite_code"] not in shown.text
    [invite] = shown.json()["invites"]
    assert (invite["status"], invite["role"], invite["id"]) == ("open", "admin", made["id"])
    body = {"username": "carla", "password": PASSWORD, "invite_code": made["invite_code"]}
    weak = body | {"password": "password1234"}
    assert code(await running.anybody().post("/auth/register", json=weak)) == (400, "VALIDATION_ERROR")
    taken = body | {"username": "ANN"}
    assert code(await running.anybody().post("/auth/register", json=taken)) == (409, "USERNAME_EXISTS")
    assert good(await running.anybody().post("/auth/register", json=body))["user"]["role"] == "admin"
    again = body | {"username": "second"}
    assert code(await running.anybody().post("/auth/register", json=again)) == (400, "INVALID_INVITE")
    assert good(await ann.get("/admin/invites"))["invites"][0]["used_by"] == "carla"


@pytest.mark.usefixtures("frozen_throttle")
async def test_invite_reveals_few_user_names(running: Running, ann: Person) -> None:
    invite = good(await ann.post("/admin/invites", json={}))["invite_code"]
    body = {"username": "ann", "password": PASSWORD, "invite_code": invite}
    answers = await together(20, lambda _: running.anybody().post("/auth/register", json=body))
    assert answers.count((409, "USERNAME_EXISTS")) == 6 and answers.count((429, "RATE_LIMITED")) == 14


async def test_new_name_must_not_look_like_another(running: Running, ann: Person) -> None:
    exists, invalid, free = (409, "USERNAME_EXISTS"), (400, "VALIDATION_ERROR"), (200, "")
    for name, expected in (
        ("аnn", invalid),  # noqa: RUF001 (the first letter is Cyrillic)
        ("anη", invalid),
        ("анна", free),
        ("李lei", free),
        ("сор", free),  # noqa: RUF001 (Cyrillic)
        ("cop", exists),
        ("cap", free),
        ("сар", exists),  # noqa: RUF001 (Cyrillic)
        ("νον", free),  # noqa: RUF001 (Greek)
        ("vov", exists),
        ("kov", free),
        ("κον", exists),
    ):
        invite = good(await ann.post("/admin/invites", json={}))["invite_code"]
        body = {"username": name, "password": PASSWORD, "invite_code": invite}
        answer = await running.anybody().post("/auth/register", json=body)
        assert ((200, "") if answer.status_code == 200 else code(answer)) == expected, name


async def test_login_link_signs_in_once(running: Running, ann: Person) -> None:
    token = await running.state.auth.login_link("ann")
    browser = running.anybody()
    answer = good(await browser.post("/auth/link", json={"token": token}))
    assert answer["user"]["username"] == "ann" and answer["csrf_token"]
    good(await browser.get("/auth/me"))
    for again in (token, "", "x" * 43):
        refused = await running.anybody().post("/auth/link", json={"token": again})
        assert code(refused) == (401, "INVALID_CREDENTIALS")
    while (await running.anybody().post("/auth/link", json={"token": "x"})).status_code != 429:
        pass
    token = await running.state.auth.login_link("ann")
    good(await running.anybody().post("/auth/link", json={"token": token}))  # a valid one is not throttled


async def test_generated_bootstrap_token_is_deleted_after_use_or_for_a_configured_one(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap-token"
    async with Running(tmp_path / "configured", bootstrap_token=""):
        assert (tmp_path / "configured" / "bootstrap-token").exists()
    async with Running(tmp_path / "configured") as running:
        assert not (tmp_path / "configured" / "bootstrap-token").exists()
        await running.first()
    async with Running(tmp_path, bootstrap_token="") as running:
        token = file.read_text("utf-8")
        assert len(token) >= 32 and running.state.auth.bootstrap_token == token
        body = {"username": "a/b", "password": PASSWORD, "token": token}
        assert code(await running.anybody().post("/admin/bootstrap", json=body)) == (400, "VALIDATION_ERROR")
        good(await running.anybody().post("/admin/bootstrap", json=body | {"username": "ann"}))
        assert not file.exists()
    async with Running(tmp_path, bootstrap_token="") as running:
        assert running.state.auth.bootstrap_token == "" and not file.exists()
        for text in (token, ""):
            refused = await running.anybody().post("/admin/bootstrap", json=body | {"username": "eve", "token": text})
            assert code(refused) == (403, "BOOTSTRAP_DISABLED")


async def test_one_account_cannot_fill_the_password_queue() -> None:
    queue = Slots(1)
    release = asyncio.Event()

    async def attempt(key: str) -> None:
        async with Auth._turn(queue, key):
            await release.wait()

    attempts = [asyncio.create_task(attempt("bob")) for _ in range(1 + HASH_QUEUE_LENGTH_PER_KEY)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await attempt("bob")
    attempts.append(asyncio.create_task(attempt("ann")))
    release.set()
    await asyncio.gather(*attempts)
