"""The command `fireside token`: the tokens with which other programs use /v1."""

from typing import Any

from .. import config
from ..auth import TOKEN_DAYS
from .address import next_url
from .client import CommandFailed, Service, open_service
from .printer import printable


def manage_tokens(options: dict[str, Any]) -> int:
    """Create a token and print it, list the tokens of a user, or revoke one."""
    settings = config.load(options)
    name, action, user = (options["name"] or "").strip(), options["action"], {"username": options["user"]}
    if action != "list" and not name:
        raise CommandFailed(f"Name the token: fireside token {action} NAME")
    days = options["days"]
    if len(name) > 100 or not (days is None or TOKEN_DAYS[0] <= days <= TOKEN_DAYS[1]):
        raise CommandFailed(f"A name has at most 100 characters; --days is from {TOKEN_DAYS[0]} to {TOKEN_DAYS[1]:,}.")
    with open_service(settings) as service:
        if action == "create":
            body = {"name": name, "record": not options["no_record"], "expires_in_days": days}
            print(service.post("/control/tokens/create", user | body)["token"])
            url = next_url(settings, options) if service.temporary else service.url
            print("It is shown only now." + (f" The address for programs is {url}/v1" if url else ""))
        elif action == "list":
            for token in _list(service, user):
                print(_line(token))
        else:
            token = _find(service, user, name)
            service.post("/control/tokens/revoke", user | {"token_id": token["id"]})
            print(f"Revoked {printable(token['name'])}.")
    return 0


def _list(service: Service, user: dict[str, Any]) -> list[dict[str, Any]]:
    return list(service.post("/control/tokens/list", user)["tokens"])


def _find(service: Service, user: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the token with this number or name."""
    found = [one for one in _list(service, user) if name in (str(one["id"]), one["name"])]
    if len(found) != 1:
        problem = f"Several tokens are named {name}." if found else f"There is no token {name}."
        raise CommandFailed(f"{problem} Use a number from: fireside token list")
    return found[0]


def _line(token: dict[str, Any]) -> str:
    used = f"last used {token['last_used'][:16].replace('T', ' ')}" if token["last_used"] else "not used yet"
    notes = [f"{token['requests']:,} requests", used]
    notes += [f"expires {token['expires_at'][:10]}"] if token["expires_at"] else []
    notes += [] if token["record"] else ["not recorded"]
    return printable(f"{token['id']:>4}  {token['name']}: {', '.join(notes)}")
