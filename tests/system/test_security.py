"""Sign-in details, secret files, and the access log."""

import logging
from pathlib import Path

import pytest
from fireside.auth import private_file
from fireside.web.middleware import AccessLog

from ..conftest import Clock
from ..live import PASSWORD, Person, Running, code, good


async def test_logout_on_https_deletes_the_cookie(tmp_path: Path) -> None:
    """A browser ignores a deletion of a __Host- cookie without Secure."""
    async with Running(tmp_path, trusted_proxies="127.0.0.1", public_url="https://localhost") as running:
        ann = await running.first()
        ann.headers["X-Forwarded-Proto"] = "https"
        token = await running.state.auth.login_link("ann")
        response = await ann.post("/auth/link", json={"token": token})
        cookies = {
            "Cookie": response.headers["set-cookie"].partition(";")[0],
            "X-CSRF-Token": good(response)["csrf_token"],
        }
        deletion = (await ann.post("/auth/logout", headers=cookies)).headers["set-cookie"]
        assert deletion.startswith("__Host-fireside=") and all(
            part in deletion for part in ("Max-Age=0", "Secure", "Path=/")
        )


async def test_login_link_of_a_disabled_user_is_refused(running: Running, ann: Person, bob: Person) -> None:
    good(await ann.patch("/admin/users/2", json={"status": "disabled"}))
    token = await running.state.auth.login_link("bob")
    assert code(await running.anybody().post("/auth/link", json={"token": token})) == (401, "INVALID_CREDENTIALS")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/auth/register", {"invite_code": "x", "username": "eve", "password": PASSWORD}),
        ("/auth/link", {"token": "x"}),
        ("/auth/password", {"current_password": "x", "new_password": PASSWORD}),
    ],
)
async def test_guesses_of_every_secret_are_throttled(
    running: Running, ann: Person, path: str, body: dict[str, str]
) -> None:
    client = ann if path == "/auth/password" else running.anybody()
    statuses = [(await client.post(path, json=body)).status_code for _ in range(7)]
    assert set(statuses[:6]) <= {400, 401} and statuses[6] == 429


async def test_overlong_password_is_not_hashed(running: Running, ann: Person) -> None:
    body = {"username": "ann", "password": "x" * 900}
    assert code(await running.anybody().post("/auth/login", json=body)) == (401, "INVALID_CREDENTIALS")
    body["password"] = "x" * 1001
    assert code(await running.anybody().post("/auth/login", json=body)) == (400, "VALIDATION_ERROR")


def test_incomplete_key_file_is_replaced(tmp_path: Path) -> None:
    key = tmp_path / "session-key"
    key.write_text("", "utf-8")
    (tmp_path / "session-key.partial").write_text("half of", "utf-8")
    assert private_file(key, lambda: "new") == "new" == private_file(key, lambda: "another")
    assert [file.name for file in tmp_path.iterdir()] == ["session-key"]


async def test_errors_are_logged_with_their_code(
    running: Running, ann: Person, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fireside.access")
    await ann.get("/conversations/7")
    await ann.get("/conversations", headers={"Origin": "https://evil.example"})
    await ann.post("/conversations", headers={"X-CSRF-Token": "wrong"}, json={})
    records = [vars(record) for record in caplog.records if record.name == "fireside.access"]
    lines = [(record.get("code"), record["user"], record.get("address")) for record in records]
    assert lines == [
        ("CONVERSATION_NOT_FOUND", 1, "127.0.0.1"),
        ("ORIGIN_NOT_ALLOWED", None, "127.0.0.1"),
        ("CSRF_INVALID", 1, "127.0.0.1"),
    ]


async def test_requests_without_a_user_have_one_log_line_per_minute_and_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    caplog.set_level(logging.INFO, "fireside.access")
    async with Running(tmp_path, trusted_proxies="127.0.0.1") as running:
        anybody = running.anybody()
        for number in range(200):
            headers = {"X-Forwarded-For": f"192.0.2.{number % 40}"}
            await anybody.get(f"/conversations/{number}", headers=headers)
        lines = len(caplog.records)
        assert lines == AccessLog.KINDS + 1, "one for each of the first addresses, and one for all others"
        clock.late += AccessLog.INTERVAL_SECONDS
        await anybody.get("/auth/me")
        later = [vars(record) for record in caplog.records[lines:]]
        assert sum(line.get("count", 0) for line in later) == 200 - lines
        assert (later[-1]["route"], later[-1]["code"]) == ("/auth/me", "AUTH_REQUIRED")
        ann = await running.first()
        caplog.clear()
        for _ in range(3):
            await ann.get("/conversations/7")
        assert len(caplog.records) == 3, "requests of a user are all logged"
