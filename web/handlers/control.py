"""Handlers of /control/, for the commands at the terminal."""

import sqlite3
from pathlib import Path
from typing import Annotated

from starlette.responses import Response

from ... import db
from ...errors import StorageUnavailable
from ...queries import tokens
from ...safety.logs import TERMINAL, audit
from .. import responses, schemas
from ..endpoint import Request
from .accounts import SignedIn, cancel_without_sessions, logged_in, new_token, revoke
from .data import Download, Zip, zip_response


async def control_link(request: Request, body: schemas.OptionalUser) -> responses.LoginToken:
    return responses.LoginToken(await request.app_state.auth.login_link(body.username))


async def control_session(request: Request, body: schemas.OptionalUser) -> SignedIn:
    return logged_in(request, await request.app_state.auth.terminal_session(body.username, request.visitor))


async def control_invite(request: Request) -> responses.NewInvite:
    user = await request.app_state.auth.user_named(None)
    return responses.NewInvite(**await request.app_state.auth.invite(user, "user", 24))


async def control_password(request: Request, body: schemas.PasswordReset) -> responses.PasswordOwner:
    user = await request.app_state.auth.reset_password(body.username, body.password)
    await cancel_without_sessions(request.app_state, user.id)
    return responses.PasswordOwner(user.username)


async def control_create_token(request: Request, body: schemas.TokenOfUser) -> responses.NewToken:
    return await new_token(request, await request.app_state.auth.user_named(body.username), body, TERMINAL)


async def control_list_tokens(request: Request, body: schemas.OptionalUser) -> responses.Tokens:
    user = await request.app_state.auth.user_named(body.username)
    return responses.Tokens(await request.database.read(tokens.list_tokens, user.id))


async def control_revoke_token(request: Request, body: schemas.TokenChoice) -> responses.Confirmation:
    return await revoke(request, await request.app_state.auth.user_named(body.username), body.token_id, TERMINAL)


async def control_backup(request: Request, body: schemas.BackupTarget) -> responses.Confirmation:
    database = request.app_state.config.database
    try:
        await db.in_background(db.copy, database, Path(body.file))
    except OSError as error:
        raise StorageUnavailable(f"{body.file}: {error.strerror}") from None
    except sqlite3.Error as error:
        if db.is_damage(error):
            raise StorageUnavailable(db.advice(database, error)) from None
        raise StorageUnavailable(f"{body.file}: {db.problem(error)}") from None
    return responses.Confirmation("Backup written")


async def control_import(request: Request, body: schemas.ImportSources) -> Annotated[Response, "application/x-ndjson"]:
    """Send a line of JSON for each step; the last has the report."""
    user = await request.app_state.auth.user_named(body.username)
    paths = [Path(path) for path in body.paths]
    audit("import preview" if body.dry_run else "import", user, TERMINAL)
    steps = request.app_state.importer.import_steps(user.id, paths, dry_run=body.dry_run)
    return Download(steps, media_type="application/x-ndjson")


async def control_export(request: Request, body: schemas.OptionalUser) -> Zip:
    user = await request.app_state.auth.user_named(body.username)
    audit("export of all conversations", user, TERMINAL)
    return zip_response(request.app_state.exporter.export_zip(user.id))
