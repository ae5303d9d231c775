"""The application: every route in one table, and what stands around them."""

import asyncio
import contextlib
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from . import db, queries
from .auth import Auth
from .backends.engine import Engine
from .chat.hub import Hub
from .config import Config
from .db import Database
from .errors import FiresideError, MethodNotAllowed, NotFound
from .providers import Providers
from .safety.sandbox import Sandbox
from .transfer.exporter import Exporter
from .transfer.importer import Importer
from .web import handlers, schemas
from .web.connection import ACCEPTS_PER_TURN, Connection, Limits, check_deadlines, half_of_connections
from .web.endpoint import ADMIN, OWNER, PUBLIC, USER, Endpoint, State
from .web.middleware import Guard, error_answer
from .web.renderer import PRELOAD, Renderer

log = logging.getLogger("fireside.server")

MESSAGE_BYTES = 32 * 1024 * 1024  # of a message with images
HOUSE_SECONDS = 60.0  # after the start, which it must not slow down
LISTEN_BACKLOG = 2048
GOODBYE_SECONDS = 3  # what open connections get after the generations have ended and said so

# fmt: off
ROUTES: tuple[Endpoint, ...] = (
    Endpoint("POST",   "/auth/login",                                    handlers.login,                PUBLIC, schemas.Credentials, csrf="none"),
    Endpoint("POST",   "/auth/register",                                 handlers.register,             PUBLIC, schemas.Registration, csrf="none"),
    Endpoint("POST",   "/auth/link",                                     handlers.redeem_link,          PUBLIC, schemas.Link, csrf="none"),
    Endpoint("POST",   "/auth/logout",                                   handlers.logout,               USER),
    Endpoint("GET",    "/auth/me",                                       handlers.me,                   USER),
    Endpoint("POST",   "/auth/password",                                 handlers.change_password,      USER,   schemas.PasswordChange),
    Endpoint("GET",    "/auth/sessions",                                 handlers.list_sessions,        USER),
    Endpoint("DELETE", "/auth/sessions/{session_id}",                    handlers.delete_session,       USER),

    Endpoint("POST",   "/admin/bootstrap",                               handlers.bootstrap,            PUBLIC, schemas.Bootstrap, csrf="none"),
    Endpoint("GET",    "/admin/users",                                   handlers.list_users,           ADMIN),
    Endpoint("PATCH",  "/admin/users/{user_id}",                         handlers.change_user,          ADMIN,  schemas.UserChange),
    Endpoint("POST",   "/admin/invites",                                 handlers.create_invite,        ADMIN,  schemas.InviteRequest),
    Endpoint("GET",    "/admin/invites",                                 handlers.list_invites,         ADMIN),
    Endpoint("POST",   "/admin/invites/{invite_id}/revoke",              handlers.revoke_invite,        ADMIN),

    Endpoint("GET",    "/defaults",                                      handlers.get_defaults,         USER),
    Endpoint("PATCH",  "/defaults",                                      handlers.change_defaults,      USER,   schemas.Defaults),
    Endpoint("POST",   "/conversations",                                 handlers.create_conversation,  USER,   schemas.NewConversation, limit=MESSAGE_BYTES),
    Endpoint("GET",    "/conversations",                                 handlers.list_conversations,   USER,   query=schemas.ConversationQuery),
    Endpoint("GET",    "/conversations/{conversation_id}",               handlers.get_conversation,     USER),
    Endpoint("PATCH",  "/conversations/{conversation_id}",               handlers.change_conversation,  USER,   schemas.ConversationFields),
    Endpoint("DELETE", "/conversations/{conversation_id}",               handlers.delete_conversation,  USER,   query=schemas.DeleteQuery),
    Endpoint("POST",   "/conversations/{conversation_id}/restore",       handlers.restore_conversation, USER),
    Endpoint("GET",    "/search",                                        handlers.search,               USER,   query=schemas.SearchQuery),

    Endpoint("GET",    "/conversations/{conversation_id}/messages",      handlers.list_messages,        USER,   query=schemas.MessageQuery),
    Endpoint("POST",   "/conversations/{conversation_id}/messages",      handlers.add_message,          USER,   schemas.NewMessage, limit=MESSAGE_BYTES),
    Endpoint("POST",   "/conversations/{conversation_id}/active",        handlers.select_version,       USER,   schemas.Selection),
    Endpoint("GET",    "/images/{image_id}",                             handlers.get_image,            USER),
    Endpoint("POST",   "/render",                                        handlers.render_markdown,      USER,   schemas.Markdown),

    Endpoint("POST",   "/conversations/{conversation_id}/stream",        handlers.stream,               USER,   schemas.AnswerRequest, csrf="lenient"),
    Endpoint("POST",   "/chat/retry",                                    handlers.retry,                USER,   schemas.RetryRequest),
    Endpoint("POST",   "/chat/cancel/{generation_id}",                   handlers.cancel,               USER),
    Endpoint("GET",    "/generations/{generation_id}/stream",            handlers.resume,               USER,   query=schemas.ResumeQuery),

    Endpoint("GET",    "/providers",                                     handlers.list_providers,       USER),
    Endpoint("GET",    "/providers/{provider_id}/models",                handlers.list_models,          USER),
    Endpoint("GET",    "/providers/{provider_id}/health",                handlers.provider_health,      USER),
    Endpoint("POST",   "/providers/{provider_id}/start",                 handlers.start_provider,       ADMIN),
    Endpoint("POST",   "/providers/{provider_id}/models/load",           handlers.load_model,           ADMIN,  schemas.ModelLoad),
    Endpoint("POST",   "/providers/{provider_id}/models/unload",         handlers.unload_model,         ADMIN,  schemas.ModelChoice),

    Endpoint("POST",   "/import",                                        handlers.import_upload,        USER,   None),
    Endpoint("GET",    "/export",                                        handlers.export_all,           USER),
    Endpoint("GET",    "/conversations/{conversation_id}/export",        handlers.export_one,           USER,   query=schemas.ExportQuery),
    Endpoint("GET",    "/usage",                                         handlers.usage,                USER),

    Endpoint("POST",   "/control/link",                                  handlers.control_link,         OWNER,  schemas.Person),
    Endpoint("POST",   "/control/invite",                                handlers.control_invite,       OWNER),
    Endpoint("POST",   "/control/password",                              handlers.control_password,     OWNER,  schemas.NewPassword),
    Endpoint("POST",   "/control/backup",                                handlers.control_backup,       OWNER,  schemas.BackupTarget),
    Endpoint("POST",   "/control/import",                                handlers.control_import,       OWNER,  schemas.Sources),
    Endpoint("POST",   "/control/export",                                handlers.control_export,       OWNER,  schemas.Person),

    Endpoint("GET",    "/openapi.json",                                  handlers.describe_api,         PUBLIC),
    Endpoint("GET",    "/health",                                        handlers.health,               PUBLIC),
    Endpoint("GET",    "/version",                                       handlers.version,              PUBLIC),
    Endpoint("GET",    "/",                                              handlers.page,                 PUBLIC),
    Endpoint("GET",    "/static/{name}",                                 handlers.static,               PUBLIC),
)
# fmt: on


async def _say_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FiresideError)
    request.state.code = error.code
    status, headers, body = error_answer(error, request.state.request_id)
    return Response(body, status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    allowed = getattr(error, "headers", None) or {}
    response = await _say_error(request, MethodNotAllowed() if "Allow" in allowed else NotFound("path"))
    response.headers.update(allowed)
    return response


def create_app(config: Config) -> Starlette:
    """The application; what it needs is opened when it starts and closed when it stops. The caller holds db.lock."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                app.state.fireside = await _open(config, stack)
            except Exception as failure:
                app.state.failure = failure  # uvicorn logs it, and tells nobody
                raise
            yield

    app = Starlette(
        routes=list(ROUTES),
        lifespan=lifespan,
        exception_handlers={FiresideError: _say_error, 404: _no_route, 405: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.failure = None
    app.state.files = handlers.read_files()
    app.add_middleware(Guard, config=config)
    return app


async def _open(config: Config, stack: contextlib.AsyncExitStack) -> State:
    """What the application needs, which `stack` closes in the opposite order."""
    handlers.make_upload_folder(config.data_dir)
    database = await db.open_database(config.database)
    stack.push_async_callback(database.close)
    engine = Engine(config)
    stack.push_async_callback(engine.aclose)
    providers = Providers(config, engine)
    stack.push_async_callback(providers.aclose)
    hub = Hub(config, database, providers)
    stack.push_async_callback(hub.aclose)
    auth = Auth(config, database)
    await hub.start()
    await auth.start()
    sandbox, importer = Sandbox(preload=PRELOAD, spare=True), Importer(database, config.user_max_bytes)
    stack.push_async_callback(sandbox.aclose)
    stack.push_async_callback(importer.aclose)
    housekeeping = asyncio.create_task(_keep_house(config, database, auth, importer), name="housekeeping")
    stack.push_async_callback(_end, housekeeping)
    secret, renderer, exporter = secrets.token_urlsafe(32), Renderer(sandbox), Exporter(database)
    waiting = half_of_connections() // 2
    return State(config, database, providers, hub, auth, secret, renderer, importer, exporter, waiting)


async def _keep_house(config: Config, database: Database, auth: Auth, importer: Importer) -> None:
    """Every hour make the day's backup, keep the newest `backups`, and remove what has expired.

    At first, remove what a crash left hidden and examine the whole file. Once it is found damaged, nothing is written any more."""

    async def done(chore: Callable[[], Awaitable[object]]) -> bool:
        """Each by itself: one that fails keeps no other from being done."""
        try:
            await chore()
        except (db.DatabaseDamaged, db.DatabaseUnusable) as error:
            database.damaged = True
            log.critical("%s", db.explain(config.database, error))
        except (FiresideError, OSError, sqlite3.Error) as error:
            log.error("housekeeping: %s", error)
        else:
            return True
        return False

    await done(importer.remove_leftovers)
    await asyncio.sleep(HOUSE_SECONDS)
    examined = False
    while True:
        examined = examined or await done(lambda: asyncio.to_thread(db.examine, config.database))
        await done(lambda: asyncio.to_thread(db.back_up_daily, config.database, config.backups))
        await done(auth.clean_up)
        await done(lambda: database.write(queries.conversations.hide_expired))
        await done(importer.remove_leftovers)
        await done(lambda: database.write(queries.conversations.optimize))
        await asyncio.sleep(3600)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Server(uvicorn.Server):
    """uvicorn closes the lifespan only when all connections have ended, and an event stream would never: so the generations
    end first, and their readers with them."""

    def __init__(self, app: Starlette, config: Config) -> None:
        self.app = app
        self.on_started: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, Limits(config)),  # type: ignore[arg-type]
                backlog=ACCEPTS_PER_TURN,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=",".join(config.trusted_proxies) or None,
                timeout_graceful_shutdown=GOODBYE_SECONDS,
                ws="none",
            )
        )

    async def on_tick(self, counter: int) -> bool:
        check_deadlines(self.server_state.connections)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(LISTEN_BACKLOG)  # asyncio has set it to the number of connections that it accepts at a time
        if self.started:
            try:
                self.on_started()
            except BaseException:
                await self.shutdown(sockets)
                raise

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        state: State | None = getattr(self.app.state, "fireside", None)
        if state is not None:
            await state.hub.aclose()
        await super().shutdown(sockets)
