"""Handlers of accounts: sign-in, sessions, names and passwords, tokens, administration."""

import logging
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from ...auth import Login
from ...errors import StorageUnavailable
from ...queries import accounts, tokens
from ...safety.logs import audit
from .. import responses, schemas
from ..endpoint import AppState, JSONResponse, Request

SignedIn = Annotated[Response, responses.SignedIn]
log = logging.getLogger("fireside.handlers")


# ---- accounts


def logged_in(request: Request, login: Login) -> Response:
    request.state.user_id = login.user.id  # for the log
    response = JSONResponse(_signed_in(login.user, login.csrf_token))
    max_age = round(request.app_state.config.session_days * 86400)
    response.set_cookie(request.cookie_name, login.cookie, max_age=max_age, **_cookie_attributes(request))
    return response


def _signed_in(user: accounts.User, csrf_token: str) -> responses.SignedIn:
    return responses.SignedIn(responses.Person(user.id, user.username, user.display_name, user.role), csrf_token)


def _cookie_attributes(request: Request) -> Any:
    """A browser ignores a change of a __Host- cookie, also its deletion, without Secure."""
    return {"httponly": True, "samesite": "strict", "secure": request.scope["scheme"] == "https"}


async def login(request: Request, body: schemas.Credentials) -> SignedIn:
    return logged_in(request, await request.app_state.auth.login(body.username, body.password, request.visitor))


async def logout(request: Request) -> Annotated[Response, responses.Confirmation]:
    await request.write(accounts.delete_session, request.identity.session_id)
    await cancel_without_sessions(request.app_state, request.user_id)
    return _signed_out(request, "Logged out successfully")


def _signed_out(request: Request, message: str) -> Response:
    response = JSONResponse(responses.Confirmation(message), headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(request.cookie_name, **_cookie_attributes(request))
    return response


async def cancel_without_sessions(state: AppState, user_id: int) -> None:
    """Cancel the generations of a user who has no session left, and those of tokens that are no longer valid."""
    has_session = await state.database.read(accounts.count_sessions, user_id) > 0
    valid = await state.database.read(tokens.list_valid_ids, user_id)
    await state.hub.cancel_unless(user_id, lambda token_id: has_session if token_id is None else token_id in valid)


async def me(request: Request) -> responses.SignedIn:
    return _signed_in(request.identity.user, request.identity.csrf_token)


async def register(request: Request, body: schemas.Registration) -> SignedIn:
    credentials = (body.username, body.password, request.visitor)
    return logged_in(request, await request.app_state.auth.register(body.invite_code, *credentials))


async def change_password(request: Request, body: schemas.PasswordChange) -> responses.Confirmation:
    passwords = (body.current_password, body.new_password)
    await request.app_state.auth.change_password(request.identity, *passwords, request.address)
    return responses.Confirmation("Password changed")


async def change_name(request: Request, body: schemas.NameChange) -> responses.SignedIn:
    identity = request.identity
    user = await request.app_state.auth.change_name(identity, body.username, body.current_password, request.address)
    return _signed_in(user, identity.csrf_token)


async def delete_account(
    request: Request, body: schemas.AccountDeletion
) -> Annotated[Response, responses.Confirmation]:
    await request.app_state.auth.delete_own_account(request.identity, body.current_password, request.address)
    await _remove_closed(request.app_state, request.user_id)
    return _signed_out(request, "Account deleted")


async def _remove_closed(state: AppState, user_id: int) -> None:
    """End the answers and remove the data of a closed account. After its sessions have ended, no new answer can begin."""
    await state.hub.cancel_all(user_id)
    try:
        await accounts.remove_closed(state.database)
    except StorageUnavailable as error:  # nobody can reach the data; housekeeping removes the rest
        log.warning("the data of a deleted account is removed later: %s", error)


async def reset_by_link(request: Request, body: schemas.ResetByLink) -> SignedIn:
    return logged_in(request, await request.app_state.auth.reset_by_link(body.token, body.password, request.visitor))


async def redeem_link(request: Request, body: schemas.Link) -> SignedIn:
    return logged_in(request, await request.app_state.auth.redeem_link(body.token, request.visitor))


async def list_sessions(request: Request) -> responses.Sessions:
    sessions = await request.read(accounts.list_sessions)
    current = request.identity.session_id
    return responses.Sessions([responses.SessionEntry(**one, current=one["id"] == current) for one in sessions])


async def delete_session(request: Request, session_id: int) -> responses.Confirmation:
    await request.write(accounts.delete_session, session_id)
    await cancel_without_sessions(request.app_state, request.user_id)
    return responses.Confirmation("Session ended")


# ---- tokens


async def create_token(request: Request, body: schemas.TokenRequest) -> responses.NewToken:
    return await new_token(request, request.identity.user, body, request.address)


async def new_token(
    request: Request, user: accounts.User, body: schemas.TokenRequest, address: str
) -> responses.NewToken:
    auth, name = request.app_state.auth, body.name.strip()
    token, text = await auth.create_token(user, name, body.record, body.expires_in_days, address)
    return responses.NewToken(**msgspec.structs.asdict(token), token=text)


async def list_tokens(request: Request) -> responses.Tokens:
    return responses.Tokens(await request.read(tokens.list_tokens))


async def delete_token(request: Request, token_id: int) -> responses.Confirmation:
    return await revoke(request, request.identity.user, token_id, request.address)


async def revoke(request: Request, user: accounts.User, token_id: int, address: str) -> responses.Confirmation:
    await request.app_state.auth.revoke_token(user, token_id, address)
    await cancel_without_sessions(request.app_state, user.id)
    return responses.Confirmation("Token revoked")


# ---- administration


async def bootstrap(request: Request, body: schemas.Bootstrap) -> SignedIn:
    token = request.headers.get("x-bootstrap-token", body.token)
    credentials = (body.username, body.password, request.visitor)
    return logged_in(request, await request.app_state.auth.bootstrap(token, *credentials))


async def list_users(request: Request) -> responses.Users:
    return responses.Users(await request.database.read(accounts.list_users))


async def change_user(request: Request, user_id: int, body: schemas.UserChange) -> accounts.User:
    user = await request.database.write(accounts.set_user, user_id, body.role, body.status)
    change = {"about": user.username, "role": user.role, "status": user.status}
    audit("user changed", request.identity.user, request.address, **change)
    await cancel_without_sessions(request.app_state, user.id)
    return user


async def create_reset_link(request: Request, user_id: int) -> responses.ResetLink:
    return responses.ResetLink(
        *await request.app_state.auth.reset_link(request.identity.user, user_id, request.address)
    )


async def delete_user(request: Request, user_id: int) -> responses.Confirmation:
    await request.app_state.auth.delete_user(request.identity.user, user_id, request.address)
    await _remove_closed(request.app_state, user_id)
    return responses.Confirmation("User deleted")


async def create_invite(request: Request, body: schemas.InviteRequest) -> responses.NewInvite:
    user, hours = request.identity.user, body.expires_in_hours
    return responses.NewInvite(**await request.app_state.auth.invite(user, body.role, hours, request.address))


async def list_invites(request: Request) -> responses.Invites:
    invites = await request.database.read(accounts.list_invites)
    return responses.Invites([responses.InviteEntry(**invite) for invite in invites])


async def revoke_invite(request: Request, invite_id: int) -> responses.Confirmation:
    await request.database.write(accounts.revoke_invite, invite_id)
    audit("invite revoked", request.identity.user, request.address, invite=invite_id)
    return responses.Confirmation("Invite revoked")
