"""The command `fireside token`: the tokens with which other programs use /v1."""

from typing import Any

import msgspec

from .. import config, queries
from ..auth import TOKEN_DAYS, Auth
from ..config import Config
from ..db import Database
from ..errors import Invalid
from .client import CommandFailed, Service, find_service, local_url, ports_to_try, with_database
from .printer import printable


def manage_tokens(options: dict[str, Any]) -> int:
    """Create a token and print it, list the tokens of a user, or revoke one."""
    settings = config.load(options)
    name = (options["name"] or "").strip()
    if options["action"] == "list":
        for token in _list(settings, find_service(settings), options["user"]):
            print(_describe(token))
    elif not name:
        raise CommandFailed(f"Name the token: fireside token {options['action']} NAME")
    elif options["action"] == "create":
        _create(settings, name, options)
    else:
        _revoke(settings, name, options["user"])
    return 0


def _create(settings: Config, name: str, options: dict[str, Any]) -> None:
    running, user, record, days = find_service(settings), options["user"], not options["no_record"], options["days"]
    if len(name) > 100 or not (days is None or TOKEN_DAYS[0] <= days <= TOKEN_DAYS[1]):
        raise Invalid(f"A name has at most 100 characters; --days is from {TOKEN_DAYS[0]} to {TOKEN_DAYS[1]:,}.")
    if running:
        body = {"username": user, "name": name, "record": record, "expires_in_days": days}
        text, url = running.post("tokens/create", body)["token"], running.url
    else:

        async def create(database: Database) -> str:
            auth = Auth(settings, database)
            return (await auth.create_token(await auth.user_named(user), name, record, days))[1]

        text = with_database(settings, create)
        url = local_url(settings, settings.host.strip("[]"), ports_to_try(settings, {})[0])
    print(text)
    print(f"It is shown only now. The address for programs is {url}/v1")


def _list(settings: Config, running: Service | None, user: str | None) -> list[dict[str, Any]]:
    if running:
        return list(running.post("tokens/list", {"username": user})["tokens"])

    async def find(database: Database) -> list[dict[str, Any]]:
        owner = await Auth(settings, database).user_named(user)
        return [msgspec.structs.asdict(one) for one in await database.read(queries.tokens.list_tokens, owner.id)]

    return with_database(settings, find)


def _describe(token: dict[str, Any]) -> str:
    used = f"last used {token['last_used'][:16].replace('T', ' ')}" if token["last_used"] else "not used yet"
    notes = [f"{token['requests']:,} requests", used]
    notes += [f"expires {token['expires_at'][:10]}"] if token["expires_at"] else []
    notes += [] if token["record"] else ["not recorded"]
    return printable(f"{token['id']:>4}  {token['name']}: {', '.join(notes)}")


def _revoke(settings: Config, name: str, user: str | None) -> None:
    """Revoke the token with this number or name."""
    running = find_service(settings)
    found = [one for one in _list(settings, running, user) if name in (str(one["id"]), one["name"])]
    if len(found) != 1:
        problem = f"Several tokens are named {name}." if found else f"There is no token {name}."
        raise CommandFailed(f"{problem} Use a number from: fireside token list")
    token_id: int = found[0]["id"]
    if running:
        running.post("tokens/revoke", {"username": user, "token_id": token_id})
    else:

        async def revoke(database: Database) -> None:
            auth = Auth(settings, database)
            await auth.revoke_token(await auth.user_named(user), token_id)

        with_database(settings, revoke)
    print(f"Revoked {printable(found[0]['name'])}.")
