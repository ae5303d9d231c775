"""Fifty at once where only one may: the first account, an invite, the last administrator."""

import asyncio
import contextlib
from typing import Any

import httpx
from fireside import queries

from ..live import BOOTSTRAP_TOKEN, NO_TLS, PASSWORD, Running, good
from . import Figures, fireside

ADMINS = 5


async def _prove(rounds: int) -> Figures:
    figures, many = Figures(), min(50, 10 * rounds)
    for _ in range(rounds):
        async with fireside(trusted_proxies="127.0.0.1") as (running, _), contextlib.AsyncExitStack() as stack:
            # The throttle counts by address, so each person has one of their own.
            people = [await stack.enter_async_context(_guest(running, number)) for number in range(many)]
            await _first_account(running, people, figures)
            await _invite(running, people, figures)
            await _last_administrator(running, people, figures)
    figures.more = f"{figures.cases // 3} rounds of each, {many} requests at once, one winner in each"
    return figures


def _guest(running: Running, number: int) -> httpx.AsyncClient:
    headers = {"X-Forwarded-For": f"192.0.2.{number + 1}"}
    return httpx.AsyncClient(base_url=running.url, trust_env=False, verify=NO_TLS, headers=headers, timeout=60)


async def _together(*requests: Any) -> list[tuple[int, str]]:
    answers: list[httpx.Response] = await asyncio.gather(*requests)
    return [(answer.status_code, answer.json().get("code", "")) for answer in answers]


async def _first_account(running: Running, people: list[httpx.AsyncClient], figures: Figures) -> None:
    body = {"password": PASSWORD, "token": BOOTSTRAP_TOKEN}
    came = await _together(
        *(
            person.post("/admin/bootstrap", json=body | {"username": f"first{number}"})
            for number, person in enumerate(people)
        )
    )
    right = sorted(came) == [(200, "")] + [(403, "BOOTSTRAP_DISABLED")] * (len(people) - 1)
    users = await running.state.database.read(queries.accounts.count_users)
    figures.expect(right and users == 1, f"first account: {users} users, {set(came)}")


async def _invite(running: Running, people: list[httpx.AsyncClient], figures: Figures) -> None:
    first = await running.state.database.read(queries.accounts.get_user, 1)
    invite = (await running.state.auth.invite(first, "user", 1))["invite_code"]
    body = {"password": PASSWORD, "invite_code": invite}
    came = await _together(
        *(
            person.post("/auth/register", json=body | {"username": f"guest{number}"})
            for number, person in enumerate(people)
        )
    )
    refused = {(400, "INVALID_INVITE"), (429, "RATE_LIMITED")}
    right = came.count((200, "")) == 1 and {*came} <= {(200, ""), *refused}
    users = await running.state.database.read(queries.accounts.count_users)
    figures.expect(right and users == 2, f"invite: {users} users, {set(came)}")


async def _last_administrator(running: Running, people: list[httpx.AsyncClient], figures: Figures) -> None:
    """Every administrator demotes or disables everybody, themselves too, ten times at once."""
    database, auth = running.state.database, running.state.auth
    ids = [user.id for user in await database.read(queries.accounts.list_users)]
    for number in range(ADMINS - len(ids)):
        await database.write(queries.accounts.add_invite, bytes([number]), "admin", ids[0], "9999")
        ids.append((await database.write(queries.accounts.redeem_invite, bytes([number]), f"admin{number}", "")).id)
    await database.write(queries.accounts.set_user, ids[1], "admin", None)
    names = [user.username for user in await database.read(queries.accounts.list_users)]
    for person, name in zip(people, names, strict=False):
        answer = await person.post("/auth/link", json={"token": await auth.login_link(name)})
        person.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
    changes = ({"role": "user"}, {"status": "disabled"})
    came = await _together(
        *(
            people[number % ADMINS].patch(f"/admin/users/{ids[number // ADMINS % ADMINS]}", json=changes[number % 2])
            for number in range(len(people))
        )
    )
    users = await database.read(queries.accounts.list_users)
    left = [user for user in users if user.role == "admin" and user.status == "active"]
    figures.expect(
        bool(left) and {status for status, _ in came} <= {200, 401, 403, 409},
        f"last administrator: {len(left)} left, {set(came)}",
    )


def prove(size: int) -> Figures:
    return asyncio.run(_prove(size))
