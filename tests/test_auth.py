"""Nobody gets in who may not, and nobody who may is kept out."""

import asyncio
import contextlib
import http.cookies
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argon2
import httpx
import pytest
from fireside import auth, queries
from fireside.auth import Visitor, check_password, clean_username
from fireside.db import ago
from fireside.errors import FiresideError, Invalid, InvalidCredentials, RateLimited, StorageUnavailable
from fireside.safety.throttle import PLACES_PER_KEY, QUEUE_LENGTH, Queue, Throttle
from fireside.server import ROUTES
from fireside.web.endpoint import ADMIN, OWNER, PUBLIC
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Clock
from .live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, code, good, until
from .system.faults.steps import blocked_writer
from .upstream import Gate, Upstream, pause
from .upstream import text as says

WRONG = {"password": "not the right phrase"}
NEW = "another long phrase"


async def execute(running: Running, sql: str, *values: Any) -> list[Any]:
    """What no request can do: time that has passed, a look at a table."""
    return await running.state.database.write(lambda conn: conn.execute(sql, values).fetchall())


# ---- names and passwords


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Ann", "ann"),
        ("  ann ", "ann"),
        ("ＡＮＮ", "ann"),  # noqa: RUF001 (fullwidth letters)
        ("Ä", "ä"),
        ("A\u0308", "ä"),
        ("STRASSE", "strasse"),
        ("a.b_c-9", "a.b_c-9"),
        ("李雷", "李雷"),
        ("x" * 64, "x" * 64),
    ],
)
def test_a_name_has_one_form(given: str, name: str) -> None:
    assert clean_username(given) == clean_username(name) == name


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a b", "a@b", "a/b", "a\0", "\u202eann", "<b>", "a\u200bb", "🔥"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="username"):
        clean_username(name)


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "eleven char",
        "x" * 257,
        "aaaaaaaaaaaaaaaa",
        "abababababababab",
        "password1234",
        "Password123!",
        "qwertyuiopasdf",
        "123456789012",
        "letmeinletmein",
        "administrator1",
        "correcthorsebatterystaple",
        "iloveyou12345",
        "annannannann",
    ],
)
def test_a_password_that_anybody_would_try_is_refused(password: str) -> None:
    with pytest.raises(Invalid, match="password"):
        check_password(password, "ann")


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "Kettle drum 9 rivers",
        "pässwörter sind geheim",
        "9f2c7a1be04d",
        "我的密码很长很安全真的是的",
        "x3" * 5 + "qv!",
    ],
)
def test_a_good_password_is_taken(password: str) -> None:
    check_password(password, "ann")


@given(st.text(min_size=12, max_size=256), st.text(min_size=1, max_size=64))
def test_no_password_is_an_error_of_ours(password: str, name: str) -> None:
    with contextlib.suppress(Invalid):
        check_password(password, name)


# ---- the throttle


def fail(throttle: Throttle, *keys: str) -> int:
    """Make a failed attempt. Return 0, or the seconds to wait if it is refused."""
    try:
        with throttle.attempt(*keys):
            raise KeyError
    except KeyError:
        return 0
    except RateLimited as refused:
        return refused.seconds


def failures(throttle: Throttle, count: int, *keys: str) -> list[int]:
    return [fail(throttle, *keys) for _ in range(count)]


def test_five_failures_are_free_and_then_each_costs_twice_as_much(clock: Clock) -> None:
    throttle = Throttle()
    assert failures(throttle, 6, "account") == [0] * 6
    waits = []
    for _ in range(8):
        wait = fail(throttle, "account")
        assert wait > 0
        clock.late += wait - 1.5 if wait > 2 else 0
        assert fail(throttle, "account") > 0, "not yet"
        clock.late += 2.5
        waits.append(wait)
        assert fail(throttle, "account") == 0
    assert [round(wait) for wait in waits] == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30], abs=1)


def test_a_success_never_counts_and_forgives() -> None:
    throttle = Throttle()
    for _ in range(50):
        with throttle.attempt("account", "address"):
            pass
    failures(throttle, 5, "account")
    with throttle.attempt("account"):
        pass
    assert failures(throttle, 6, "account") == [0] * 6


def test_failures_are_forgotten_an_hour_after_the_last(clock: Clock) -> None:
    throttle = Throttle()
    for _ in range(4):
        assert failures(throttle, 5, "account") == [0] * 5
        clock.late += throttle.MEMORY_SECONDS
    assert failures(throttle, 5, "account") == [0] * 5
    clock.late += throttle.MEMORY_SECONDS - 60
    assert fail(throttle, "account") == 0 < fail(throttle, "account")


async def test_guesses_at_once_are_no_more_than_one_after_the_other(running: Running, ann: Person) -> None:
    wrong = {"username": "ann", "password": WRONG["password"]}
    answers = await together(50, lambda _: running.anybody().post("/auth/login", json=wrong))
    assert answers.count((401, "INVALID_CREDENTIALS")) == 6 and answers.count((429, "RATE_LIMITED")) == 44


async def test_who_is_right_is_let_in_however_many_come_at_once(running: Running, ann: Person) -> None:
    body = {"username": "ann", "password": PASSWORD}
    assert await together(20, lambda _: running.anybody().post("/auth/login", json=body)) == [(200, "")] * 20


@pytest.mark.costly
async def test_a_known_address_is_not_delayed_by_a_thousand_strangers(running: Running, ann: Person) -> None:
    log_in, home = running.state.auth.login, Visitor("", "192.0.2.1", None)
    await log_in("ann", PASSWORD, home)

    async def guess(number: int) -> None:
        await log_in(f"user{number}", WRONG["password"], Visitor("", f"10.0.{number // 250}.{number % 250}", None))

    strangers = [asyncio.create_task(guess(number)) for number in range(1000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [task for task in strangers if not task.done()]
    assert len(waiting) <= QUEUE_LENGTH + 1, "the others were refused at once"
    assert all(isinstance(task.exception(), RateLimited) for task in strangers if task.done())
    await log_in("ann", PASSWORD, home)
    assert sum(task.done() for task in waiting) <= 10, "their hashes took their turns beside Ann's, not before it"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*strangers, return_exceptions=True)


async def test_addresses_stay_known_after_a_restart(tmp_path: Path) -> None:
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


async def test_a_valid_link_works_however_many_guesses_came_before(running: Running, ann: Person) -> None:
    while (await running.anybody().post("/auth/link", json={"token": "x"})).status_code != 429:
        pass
    token = await running.state.auth.login_link("ann")
    good(await running.anybody().post("/auth/link", json={"token": token}))


def test_one_account_and_one_address_do_not_hinder_others() -> None:
    throttle = Throttle()
    failures(throttle, 6, "account a", "address x")
    assert fail(throttle, "account a", "address y") > 0
    assert fail(throttle, "account b", "address x") > 0
    assert fail(throttle, "account b", "address y") == 0


def test_the_throttle_does_not_grow_without_end() -> None:
    throttle = Throttle()
    for number in range(Throttle.KEYS + 500):
        fail(throttle, f"account {number}")
    assert len(throttle._failures) == Throttle.KEYS


def test_what_the_disk_does_not_take_is_no_guess() -> None:
    throttle = Throttle()
    for _ in range(Throttle.FREE + 5):
        with pytest.raises(StorageUnavailable), throttle.attempt("account"):
            raise StorageUnavailable
    with throttle.attempt("account"):
        pass


async def test_guessing_is_slowed_down_and_nobody_else_is_kept_out(clock: Clock, running: Running, bob: Person) -> None:
    stranger = running.anybody()
    body = {"username": "carl", "password": WRONG["password"]}
    for _ in range(6):
        assert code(await stranger.post("/auth/login", json=body)) == (401, "INVALID_CREDENTIALS")
    refused = await stranger.post("/auth/login", json=body)
    assert code(refused) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    # A session that lives is not shut out, and who has signed in here before may sign in.
    assert good(await bob.get("/auth/me"))["user"]["username"] == "bob"
    clock.late += 2
    assert code(await stranger.post("/auth/login", json=body)) == (401, "INVALID_CREDENTIALS")
    again = await stranger.post("/auth/login", json=body)
    assert code(again) == (429, "RATE_LIMITED") and int(again.headers["retry-after"]) in (2, 3)
    clock.late += 4
    await running.login("bob")


async def test_guessing_the_bootstrap_token_is_slowed_down_too(running: Running) -> None:
    stranger = running.anybody()
    body = {"username": "eve", "password": PASSWORD, "token": "x"}
    answers = [code(await stranger.post("/admin/bootstrap", json=body)) for _ in range(7)]
    assert answers == [(403, "INVALID_BOOTSTRAP_TOKEN")] * 6 + [(429, "RATE_LIMITED")]


# ---- login


@pytest.mark.costly
async def test_an_unknown_name_takes_as_long_as_a_wrong_password(running: Running, ann: Person) -> None:
    """Without a hash for nobody the two differ forty-fold. What the processor spends, its threads included, is measured: a
    machine with other things to do makes no difference to that."""
    spent: dict[str, list[float]] = {"ann": [], "nobody": [], "x" * 300: []}
    for round_ in range(6):
        for name, times in spent.items():
            started = time.process_time()
            with pytest.raises(InvalidCredentials):
                await running.state.auth.login(name, WRONG["password"], Visitor("", f"{name[:9]} {round_}", None))
            times.append(time.process_time() - started)
            running.state.auth.throttle = Throttle()
    known, *unknown = (min(times[1:]) for times in spent.values())
    assert all(0.5 < other / known < 2 for other in unknown), spent


async def test_no_login_says_more_than_another(running: Running, ann: Person, bob: Person) -> None:
    users = good(await ann.get("/admin/users"))["users"]
    good(await ann.patch(f"/admin/users/{users[1]['id']}", json={"status": "disabled"}))
    told = set()
    for name, password in (
        ("bob", PASSWORD),  # right, but disabled
        ("nobody", PASSWORD),
        ("ann", WRONG["password"]),
        ("", ""),
        ("a b", "x" * 900),
    ):
        answer = await running.anybody().post("/auth/login", json={"username": name, "password": password})
        assert "set-cookie" not in answer.headers
        told.add((answer.status_code, answer.json()["code"], answer.json()["message"]))
        running.state.auth.throttle = Throttle()
    assert len(told) == 1
    right = {"username": "bob", "password": PASSWORD}
    statuses = [(await running.anybody().post("/auth/login", json=right)).status_code for _ in range(7)]
    assert statuses == [401] * 6 + [429], "who is disabled is slowed down as if the password were wrong"


async def test_the_name_is_taken_in_any_form(running: Running, ann: Person) -> None:
    assert good(await (await running.login(" ANN ")).get("/auth/me"))["user"]["username"] == "ann"


@pytest.mark.costly
async def test_passwords_are_kept_as_argon2id_and_sessions_as_digests(running: Running, ann: Person) -> None:
    [row] = await execute(running, "SELECT password_hash FROM users")
    assert row[0].startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    cookie = next(iter(ann.cookies.jar)).value
    assert cookie is not None
    everything = b"".join(file.read_bytes() for file in everyfile(running.config.data_dir))
    for secret in (cookie, cookie.rpartition(".")[0], PASSWORD, ann.headers["X-CSRF-Token"]):
        assert secret.encode() not in everything


def everyfile(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("fireside.db")]


# ---- cookies and sessions


async def test_the_cookie_is_kept_from_scripts_and_other_sites(running: Running, ann: Person) -> None:
    answer = await running.anybody().post("/auth/login", json={"username": "ann", "password": PASSWORD})
    [header] = answer.headers.get_list("set-cookie")
    [(name, morsel)] = http.cookies.SimpleCookie(header).items()
    assert name == f"fireside_{running.url.rpartition(':')[2]}"
    assert morsel["httponly"] and morsel["samesite"].lower() == "strict" and morsel["path"] == "/"
    assert not morsel["domain"] and not morsel["secure"]
    assert int(morsel["max-age"]) == 90 * 86400


async def test_on_https_the_cookie_is_bound_to_the_host(tmp_path: Path) -> None:
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
        # The same cookie on plain http is nobody's.
        assert code(await client.get("/auth/me", headers=headers | {"X-Forwarded-Proto": "http"}))[0] == 401


async def test_a_cookie_that_is_not_ours_is_nobody_s(running: Running, ann: Person) -> None:
    [cookie] = ann.cookies.jar
    assert cookie.value is not None
    token, _, signature = cookie.value.rpartition(".")
    client = running.anybody()
    for value in (
        "",
        "x",
        token,
        f"{token}.",
        f"{token}.{'x' if signature[0] != 'x' else 'y'}{signature[1:]}",
        f"{token[:-1]}x.{signature}",
        f"x.{cookie.value}",
        f"\xff{cookie.value}",
        "." * 100,
        "x" * 8000,
        '"' + cookie.value,
    ):
        headers = [(b"cookie", f"{cookie.name}={value}".encode("latin-1"))]
        assert code(await client.get("/auth/me", headers=headers)) == (401, "AUTH_REQUIRED"), value
    wrong_name = {"Cookie": f"fireside_1={cookie.value}"}
    assert code(await client.get("/auth/me", headers=wrong_name)) == (401, "AUTH_REQUIRED")


async def test_a_session_survives_a_restart_and_its_key_s_loss_ends_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Running(data) as running:
        [cookie] = (await running.first()).cookies.jar
    for expected in (200, 401):
        async with Running(data) as running:
            name = f"fireside_{running.url.rpartition(':')[2]}"
            answer = await running.anybody().get("/auth/me", headers={"Cookie": f"{name}={cookie.value}"})
            assert answer.status_code == expected
        (data / "session-key").unlink()


async def test_logout_ends_the_session_on_the_server_too(running: Running, ann: Person) -> None:
    other = await running.login("ann")
    [cookie] = ann.cookies.jar
    answer = await ann.post("/auth/logout")
    good(answer)
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    replayed = {"Cookie": f"{cookie.name}={cookie.value}"}
    assert code(await running.anybody().get("/auth/me", headers=replayed)) == (401, "AUTH_REQUIRED")
    good(await other.get("/auth/me"))


async def test_a_session_ends_when_it_is_idle_or_old(running: Running, ann: Person) -> None:
    for column, days in (("last_seen", 31), ("created_at", 91)):
        person = await running.login("ann")
        good(await person.get("/auth/me"))
        made_old = f"UPDATE sessions SET {column} = ? WHERE id = (SELECT max(id) FROM sessions)"
        await execute(running, made_old, ago(days=days))
        assert code(await person.get("/auth/me")) == (401, "AUTH_REQUIRED")
    good(await ann.get("/auth/me"))


async def test_a_session_in_use_is_marked_as_seen_now_and_then(running: Running, ann: Person) -> None:
    await execute(running, "UPDATE sessions SET last_seen = ?", ago(days=29))
    good(await ann.get("/auth/me"))
    [session] = good(await ann.get("/auth/sessions"))["sessions"]
    assert session["last_seen"] > ago(minutes=1)


async def test_signing_in_gives_a_new_cookie_and_ends_the_one_before(running: Running, ann: Person) -> None:
    [before] = [cookie.value for cookie in ann.cookies.jar]
    again = good(await ann.post("/auth/login", json={"username": "ann", "password": PASSWORD}))
    [after] = [cookie.value for cookie in ann.cookies.jar]
    assert before != after and again["csrf_token"] != ann.headers["X-CSRF-Token"]
    assert len(await execute(running, "SELECT * FROM sessions")) == 1


async def test_sessions_are_listed_and_ended_from_another(running: Running, ann: Person, bob: Person) -> None:
    phone = await running.login("ann")
    shown = good(await ann.get("/auth/sessions"))["sessions"]
    assert [set(session) for session in shown] == [{"id", "client", "created_at", "last_seen", "current"}] * 2
    [other] = [session["id"] for session in shown if not session["current"]]
    assert code(await bob.delete(f"/auth/sessions/{other}")) == (404, "SESSION_NOT_FOUND")
    good(await phone.get("/auth/me"))
    assert good(await ann.delete(f"/auth/sessions/{other}")) == {"message": "Session ended"}
    assert code(await phone.get("/auth/me"))[0] == 401
    assert code(await ann.delete(f"/auth/sessions/{other}")) == (404, "SESSION_NOT_FOUND")


# ---- the CSRF token


async def test_the_token_is_the_session_s_own_and_stays_the_same(running: Running, ann: Person) -> None:
    token = ann.headers["X-CSRF-Token"]
    assert good(await ann.get("/auth/me"))["csrf_token"] == token
    other = await running.login("ann")
    assert other.headers["X-CSRF-Token"] != token
    for wrong in ("", "x", token[:-1], token.upper() + "x", other.headers["X-CSRF-Token"], "é"):
        headers = [(b"x-csrf-token", wrong.encode("latin-1"))]
        answer = await ann.post("/conversations", json={}, headers=headers)
        assert code(answer) == (403, "CSRF_INVALID")
    assert good(await ann.get("/conversations")) == []


async def test_every_route_that_changes_something_asks_for_it_and_for_its_role(
    running: Running, ann: Person, bob: Person
) -> None:
    """The table of routes against the service: 401, then 403, before anything of the request is looked at."""
    stranger = running.anybody()
    tokenless = {"X-CSRF-Token": ""}
    for route in ROUTES:
        method = route.method
        access, csrf = route.access, route.csrf
        path = route.path.replace("{name}", "x")
        garbage: dict[str, Any] = (
            {"content": b"{", "headers": {"content-type": "text/plain"}} if method != "GET" else {}
        )
        where = route.name
        if access is PUBLIC:
            assert csrf == "none" or method == "GET", where
            continue
        assert code(await stranger.request(method, path, **garbage)) == (401, "AUTH_REQUIRED"), where
        if access is OWNER:
            assert code(await ann.request(method, path, **garbage)) == (401, "AUTH_REQUIRED"), where
            continue
        if method != "GET":
            assert csrf == ("lenient" if path.endswith("/stream") else "required"), where
            assert code(await ann.request(method, path, headers=tokenless)) == (403, "CSRF_INVALID"), where
        if access is ADMIN:
            assert code(await bob.request(method, path, **garbage)) == (403, "FORBIDDEN"), where


async def test_streaming_takes_no_token_but_no_wrong_one(ann: Person, upstream: Upstream, running: Running) -> None:
    conversation_id = await ann.conversation("Hello?")
    path, body = f"/conversations/{conversation_id}/stream", {"provider_id": "lmstudio", "model": "m"}
    token = ann.headers.pop("X-CSRF-Token")
    refused = (
        ({"X-CSRF-Token": "wrong"}, "CSRF_INVALID"),
        ({"Origin": "http://evil.example"}, "ORIGIN_NOT_ALLOWED"),
        ({"Origin": running.url.replace("127.0.0.1", "localhost")}, "ORIGIN_NOT_ALLOWED"),
        ({"Sec-Fetch-Site": "same-site"}, "ORIGIN_NOT_ALLOWED"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "ORIGIN_NOT_ALLOWED"),
        ({"Origin": "http://evil.example", "X-CSRF-Token": token}, "ORIGIN_NOT_ALLOWED"),
    )
    for headers, expected in refused:
        assert code(await ann.post(path, json=body, headers=headers)) == (403, expected)
    assert upstream.chats == []
    for headers in ({}, {"Origin": running.url}, {"Sec-Fetch-Site": "same-origin"}, {"X-CSRF-Token": token}):
        assert (await ann.post(path, json=body, headers=headers)).status_code == 200
    assert len(upstream.chats) == 1


# ---- what ends sessions and answers


async def test_a_new_password_ends_every_other_session(running: Running, ann: Person) -> None:
    phone = await running.login("ann")
    wrong = {"current_password": WRONG["password"], "new_password": NEW}
    assert code(await ann.post("/auth/password", json=wrong)) == (401, "INVALID_CREDENTIALS")
    weak = {"current_password": PASSWORD, "new_password": "password1234"}
    assert code(await ann.post("/auth/password", json=weak)) == (400, "VALIDATION_ERROR")
    good(await phone.get("/auth/me"))
    right = {"current_password": PASSWORD, "new_password": NEW}
    assert good(await ann.post("/auth/password", json=right)) == {"message": "Password changed"}
    good(await ann.get("/auth/me"))
    assert code(await phone.get("/auth/me"))[0] == 401
    old = await running.anybody().post("/auth/login", json={"username": "ann", "password": PASSWORD})
    assert code(old) == (401, "INVALID_CREDENTIALS")
    await running.login("ann", NEW)


async def test_another_role_or_status_counts_at_once(running: Running, ann: Person, bob: Person) -> None:
    path = f"/admin/users/{good(await bob.get('/auth/me'))['user']['id']}"
    changed = good(await ann.patch(path, json={"role": "admin"}))
    assert (changed["username"], changed["role"], changed["status"]) == ("bob", "admin", "active")
    assert code(await bob.get("/auth/me"))[0] == 401
    bob = await running.login("bob")
    good(await bob.get("/admin/users"))
    good(await ann.patch(path, json={"role": "user"}))
    bob = await running.login("bob")
    assert code(await bob.get("/admin/users")) == (403, "FORBIDDEN")
    good(await ann.patch(path, json={"status": "disabled"}))
    assert code(await bob.get("/auth/me"))[0] == 401
    refused = await running.anybody().post("/auth/login", json={"username": "bob", "password": PASSWORD})
    assert code(refused) == (401, "INVALID_CREDENTIALS")
    good(await ann.patch(path, json={"status": "active"}))
    await running.login("bob")


@pytest.mark.parametrize("how", ["disabled", "logged out"])
async def test_whose_last_session_ends_is_not_written_for_any_more(
    running: Running, ann: Person, bob: Person, upstream: Upstream, how: str
) -> None:
    conversation_id = await bob.conversation("Hello?")
    upstream.enqueue(says("one"), pause(Gate()))
    body = {"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "m"}
    good(await bob.post("/chat/retry", json=body))
    await upstream.received()
    if how == "disabled":
        user_id = good(await bob.get("/auth/me"))["user"]["id"]
        good(await ann.patch(f"/admin/users/{user_id}", json={"status": "disabled"}))
    else:
        phone = await running.login("bob")
        good(await bob.post("/auth/logout"))
        assert running.state.hub.generations, "the phone is signed in still"
        good(await phone.post("/auth/logout"))
    await upstream.closed()
    assert not running.state.hub.generations


# ---- races


async def together(count: int, request: Callable[[int], Any]) -> list[tuple[int, str]]:
    answers: list[httpx.Response] = await asyncio.gather(*(request(number) for number in range(count)))
    return [(200, "") if answer.status_code == 200 else code(answer) for answer in answers]


@pytest.mark.parametrize("what", ["login", "link", "password"])
async def test_what_is_under_way_when_the_password_is_reset_comes_to_nothing(
    running: Running, ann: Person, what: str
) -> None:
    state = running.state
    client, path, body = {
        "login": (running.anybody(), "/auth/login", {"username": "ann", "password": PASSWORD}),
        "link": (running.anybody(), "/auth/link", {"token": await state.auth.login_link("ann")}),
        "password": (ann, "/auth/password", {"current_password": PASSWORD, "new_password": "what a thief would like"}),
    }[what]
    begin: list[Callable[[], Any]] = [
        lambda: state.auth.reset_password("ann", NEW),
        lambda: client.post(path, json=body),
    ]
    if what == "link":  # which a reset takes away: it must have been redeemed
        begin.reverse()
    async with blocked_writer(running) as waiting:
        tasks = []
        for number, beginning in enumerate(begin, 1):
            tasks.append(asyncio.create_task(beginning()))
            await until(lambda number=number: waiting(number), "the old password to be found right")
    answer = next(result for result in await asyncio.gather(*tasks) if isinstance(result, httpx.Response))
    assert code(answer) == (401, "INVALID_CREDENTIALS") and "set-cookie" not in answer.headers
    assert await execute(running, "SELECT * FROM sessions") == []
    await running.login("ann", NEW)


async def test_two_logins_that_hash_the_password_anew_are_both_let_in(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_HASHER", argon2.PasswordHasher(time_cost=2, memory_cost=64, parallelism=1))
    body = {"username": "ann", "password": PASSWORD}
    async with blocked_writer(running) as waiting:
        logins = [asyncio.create_task(running.anybody().post("/auth/login", json=body)) for _ in range(2)]
        await until(lambda: waiting(2), "both to be let in")
    assert [(await login).status_code for login in logins] == [200, 200]
    [[stored]] = await execute(running, "SELECT password_hash FROM users")
    assert "t=2" in stored


async def test_of_fifty_first_users_one_is_the_first(running: Running) -> None:
    clients = [running.anybody() for _ in range(50)]
    answers = await together(
        50,
        lambda number: clients[number].post(
            "/admin/bootstrap", json={"username": f"user{number}", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
        ),
    )
    assert sorted(set(answers)) == [(200, ""), (403, "BOOTSTRAP_DISABLED")] and answers.count((200, "")) == 1
    winner = clients[answers.index((200, ""))]
    assert len(good(await winner.get("/admin/users"))["users"]) == 1
    late = {"username": "late", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
    assert code(await running.anybody().post("/admin/bootstrap", json=late)) == (403, "BOOTSTRAP_DISABLED")


async def test_of_fifty_guests_with_one_invite_one_gets_in(running: Running, ann: Person) -> None:
    invite = good(await ann.post("/admin/invites", json={}))["invite_code"]
    answers = await together(
        50,
        lambda number: running.anybody().post(
            "/auth/register", json={"username": f"guest{number}", "password": PASSWORD, "invite_code": invite}
        ),
    )
    assert answers.count((200, "")) == 1
    assert set(answers) <= {(200, ""), (400, "INVALID_INVITE"), (429, "RATE_LIMITED")}
    assert len(good(await ann.get("/admin/users"))["users"]) == 2


async def test_of_fifty_redemptions_in_the_database_one_is_done(running: Running, ann: Person) -> None:
    database = running.state.database
    await database.write(queries.accounts.add_invite, b"code", "user", 1, "9999")
    redeeming = (database.write(queries.accounts.redeem_invite, b"code", f"guest{number}", "") for number in range(50))
    results = await asyncio.gather(*redeeming, return_exceptions=True)
    assert sum(not isinstance(result, FiresideError) for result in results) == 1


async def test_two_administrators_who_demote_each_other_leave_one(running: Running, ann: Person) -> None:
    database = running.state.database
    await database.write(queries.accounts.add_invite, b"code", "admin", 1, "9999")
    await database.write(queries.accounts.redeem_invite, b"code", "bob", "")
    for number in range(20):
        change = ("user", None) if number % 2 else (None, "disabled")
        results = await asyncio.gather(
            *(database.write(queries.accounts.set_user, user_id, *change) for user_id in (1, 2)), return_exceptions=True
        )
        assert [isinstance(result, FiresideError) for result in results].count(True) == 1
        for user_id in (1, 2):
            await database.write(queries.accounts.set_user, user_id, "admin", "active")


async def test_the_last_administrator_is_told_so(ann: Person) -> None:
    path = f"/admin/users/{good(await ann.get('/auth/me'))['user']['id']}"
    for change in ({"role": "user"}, {"status": "disabled"}, {"role": "user", "status": "disabled"}):
        assert code(await ann.patch(path, json=change)) == (409, "LAST_ADMIN")
    good(await ann.get("/admin/users"))


# ---- invites, links, the first account


async def test_an_invite_is_shown_once_and_works_once(running: Running, ann: Person) -> None:
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


async def test_one_invite_tells_few_names(running: Running, ann: Person) -> None:
    invite = good(await ann.post("/admin/invites", json={}))["invite_code"]
    body = {"username": "ann", "password": PASSWORD, "invite_code": invite}
    answers = await together(20, lambda _: running.anybody().post("/auth/register", json=body))
    assert answers.count((409, "USERNAME_EXISTS")) == 6 and answers.count((429, "RATE_LIMITED")) == 14


@pytest.mark.parametrize(
    ("taken", "name", "error"),
    [
        ("ann", "аnn", (400, "VALIDATION_ERROR")),  # noqa: RUF001 (the first letter is Cyrillic)
        ("ann", "anη", (400, "VALIDATION_ERROR")),
        ("cop", "сор", (409, "USERNAME_EXISTS")),  # noqa: RUF001 (Cyrillic)
        ("сор", "cop", (409, "USERNAME_EXISTS")),  # noqa: RUF001
        ("vov", "νον", (409, "USERNAME_EXISTS")),  # noqa: RUF001 (Greek)
        ("сор", "νον", (200, "")),  # noqa: RUF001
        ("ann", "анна", (200, "")),
        ("ann", "李lei", (200, "")),
    ],
)
async def test_a_new_name_does_not_look_like_another(
    running: Running, taken: str, name: str, error: tuple[int, str]
) -> None:
    admin = await running.first(taken)
    invite = good(await admin.post("/admin/invites", json={}))["invite_code"]
    body = {"username": name, "password": PASSWORD, "invite_code": invite}
    assert await together(1, lambda _: running.anybody().post("/auth/register", json=body)) == [error]


async def test_an_invite_that_was_revoked_or_expired_gives_nothing(running: Running, ann: Person) -> None:
    codes = {}
    for kind in ("revoked", "expired"):
        made = good(await ann.post("/admin/invites", json={}))
        codes[kind] = made["invite_code"]
        if kind == "revoked":
            assert good(await ann.post(f"/admin/invites/{made['id']}/revoke")) == {"message": "Invite revoked"}
        else:
            await execute(running, "UPDATE invites SET expires_at = ? WHERE id = ?", ago(seconds=1), made["id"])
    for kind, invite in {**codes, "unknown": "x" * 43, "empty": ""}.items():
        body = {"username": f"guest-{kind}", "password": PASSWORD, "invite_code": invite}
        assert code(await running.anybody().post("/auth/register", json=body)) == (400, "INVALID_INVITE")
    statuses = [invite["status"] for invite in good(await ann.get("/admin/invites"))["invites"]]
    assert statuses == ["expired", "revoked"]
    for hours in (0, 721, -1, 1.5, "24"):
        assert code(await ann.post("/admin/invites", json={"expires_in_hours": hours})) == (400, "VALIDATION_ERROR")


async def test_a_login_link_signs_in_once(running: Running, ann: Person) -> None:
    token = await running.state.auth.login_link("ann")
    browser = running.anybody()
    said = good(await browser.post("/auth/link", json={"token": token}))
    assert said["user"]["username"] == "ann" and said["csrf_token"]
    good(await browser.get("/auth/me"))
    for again in (token, "", "x" * 43):
        refused = await running.anybody().post("/auth/link", json={"token": again})
        assert code(refused) == (401, "INVALID_CREDENTIALS")


async def test_a_link_ends_with_the_password_that_was_there(running: Running, ann: Person) -> None:
    token = await running.state.auth.login_link(None)
    good(await ann.post("/auth/password", json={"current_password": PASSWORD, "new_password": NEW}))
    refused = await running.anybody().post("/auth/link", json={"token": token})
    assert code(refused) == (401, "INVALID_CREDENTIALS")


async def test_a_token_from_the_settings_takes_the_place_of_one_that_was_made(tmp_path: Path) -> None:
    async with Running(tmp_path, bootstrap_token=""):
        assert (tmp_path / "bootstrap-token").exists()
    async with Running(tmp_path) as running:
        assert not (tmp_path / "bootstrap-token").exists()
        await running.first()


async def test_a_bootstrap_token_is_made_kept_private_and_gone_after_use(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Running(data, bootstrap_token="") as running:
        token = (data / "bootstrap-token").read_text("utf-8")
        assert len(token) >= 32 and running.state.auth.bootstrap_token == token
        bad = {"username": "a b", "password": PASSWORD, "token": token}
        assert code(await running.anybody().post("/admin/bootstrap", json=bad)) == (400, "VALIDATION_ERROR")
        body = {"username": "ann", "password": PASSWORD, "token": token}
        good(await running.anybody().post("/admin/bootstrap", json=body))
        assert not (data / "bootstrap-token").exists()
    async with Running(data) as running:
        assert running.state.auth.bootstrap_token == ""
        await until(lambda: not (data / "bootstrap-token").exists())


async def test_one_account_cannot_fill_the_queue_for_passwords() -> None:
    queue = Queue()
    release = asyncio.Event()

    async def attempt(key: str) -> None:
        async with queue.turn(key):
            await release.wait()

    attempts = [asyncio.create_task(attempt("bob")) for _ in range(PLACES_PER_KEY)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await attempt("bob")
    attempts.append(asyncio.create_task(attempt("ann")))
    release.set()
    await asyncio.gather(*attempts)
