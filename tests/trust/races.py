"""Atomicity: one of many simultaneous requests succeeds, for the first account, an invite and the last administrator."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from fireside import queries

from ..live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, good
from . import Figures, fireside

ADMINS = 5
OK = (200, "")


async def _prove(rounds: int) -> Figures:
    figures, many = Figures(), min(50, 10 * rounds)
    for _ in range(rounds):
        async with fireside(trusted_proxies="127.0.0.1") as (running, _):
            clients = [running.anybody() for _ in range(many)]
            for number, client in enumerate(clients, 1):
                client.headers["X-Forwarded-For"] = f"192.0.2.{number}"  # the throttle counts by address
                client.timeout = 60
            await _first_account(running, clients, figures)
            await _invite(running, clients, figures)
            await _last_administrator(running, clients, figures)
    figures.more = f"{figures.cases // 3} rounds of each, {many} simultaneous requests, one success in each"
    return figures


async def _send_all(clients: list[Person], send: Callable[[int, Person], Any]) -> list[tuple[int, str]]:
    answers: list[httpx.Response] = await asyncio.gather(*(send(*item) for item in enumerate(clients)))
    return [(answer.status_code, answer.json().get("code", "")) for answer in answers]


async def _first_account(running: Running, clients: list[Person], figures: Figures) -> None:
    body = {"password": PASSWORD, "token": BOOTSTRAP_TOKEN}
    results = await _send_all(
        clients, lambda number, client: client.post("/admin/bootstrap", json=body | {"username": f"first{number}"})
    )
    right = sorted(results) == [OK] + [(403, "BOOTSTRAP_DISABLED")] * (len(clients) - 1)
    users = await running.state.database.read(queries.accounts.count_users)
    figures.expect(right and users == 1, f"first account: {users} users, {set(results)}")


async def _invite(running: Running, clients: list[Person], figures: Figures) -> None:
    first = await running.state.database.read(queries.accounts.get_user, 1)
    body = {"password": PASSWORD, "invite_code": (await running.state.auth.invite(first, "user", 1))["invite_code"]}
    results = await _send_all(
        clients, lambda number, client: client.post("/auth/register", json=body | {"username": f"guest{number}"})
    )
    right = results.count(OK) == 1 and set(results) <= {OK, (400, "INVALID_INVITE"), (429, "RATE_LIMITED")}
    users = await running.state.database.read(queries.accounts.count_users)
    figures.expect(right and users == 2, f"invite: {users} users, {set(results)}")


async def _last_administrator(running: Running, clients: list[Person], figures: Figures) -> None:
    """Each administrator demotes or disables each, including themselves, ten times at once."""
    database, auth = running.state.database, running.state.auth
    ids = [user.id for user in await database.read(queries.accounts.list_users)]
    for number in range(ADMINS - len(ids)):
        await database.write(queries.accounts.add_invite, bytes([number]), "admin", ids[0], "9999")
        ids.append((await database.write(queries.accounts.redeem_invite, bytes([number]), f"admin{number}", "")).id)
    await database.write(queries.accounts.set_user, ids[1], "admin", None)
    names = [user.username for user in await database.read(queries.accounts.list_users)]
    for client, name in zip(clients, names, strict=False):
        answer = await client.post("/auth/link", json={"token": await auth.login_link(name)})
        client.headers["X-CSRF-Token"] = good(answer)["csrf_token"]

    def change(number: int, _: Person) -> Any:
        path = f"/admin/users/{ids[number // ADMINS % ADMINS]}"
        return clients[number % ADMINS].patch(path, json=({"role": "user"}, {"status": "disabled"})[number % 2])

    results = await _send_all(clients, change)
    users = await database.read(queries.accounts.list_users)
    left = sum(user.role == "admin" and user.status == "active" for user in users)
    right = left > 0 and {status for status, _ in results} <= {200, 401, 403, 409}
    figures.expect(right, f"last administrator: {left} left, {set(results)}")


def prove(size: int) -> Figures:
    return asyncio.run(_prove(size))
