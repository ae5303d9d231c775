"""The application: its routes in one table, its start and end, housekeeping, and the uvicorn server."""

import asyncio
import contextlib
import gc
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from . import db, queries
from .auth import Auth
from .backends.engine import Engine
from .chat.hub import Hub
from .chat.receipt import Receipts
from .chat.temporary import TemporaryChats
from .config import Config
from .documents.checker import QuotationChecker
from .documents.reader import Reader
from .errors import FiresideError, MethodNotAllowed, NotFound
from .providers import Providers
from .safety import limits
from .safety.sandbox import Sandbox
from .transfer.exporter import Exporter
from .transfer.importer import Importer
from .web import openai, schemas
from .web.connection import ACCEPTS_PER_TURN, Connection, Limits, Listener, check_deadlines
from .web.endpoint import ADMIN, CLI, PUBLIC, TOKEN, USER, USER_OR_TOKEN, AppState, Endpoint
from .web.handlers import (
    accounts,
    answers,
    attachments,
    control,
    conversations,
    data,
    messages,
    prompts,
    servers,
    service,
)
from .web.middleware import SecurityMiddleware, error_response
from .web.renderer import PRELOAD, Renderer

log = logging.getLogger("fireside.server")

MESSAGE_BYTES = 32 * 1024 * 1024  # of a request with images
RENDER_BYTES = 4 * 1024 * 1024  # of an answer, escaped as JSON
HOUSEKEEPING_DELAY_SECONDS = 60.0  # it would slow down the start
HOUSEKEEPING_INTERVAL_SECONDS = 3600
LISTEN_BACKLOG = 2048
SWITCH_SECONDS = 0.0005  # after which a busy thread of the database lets the event loop run; Python has 0.005
SHUTDOWN_TIMEOUT_SECONDS = 3  # for open connections, after all generations have ended

# fmt: off
ROUTES: tuple[Endpoint, ...] = (
    Endpoint("POST",   "/auth/login",                                                 accounts.login,                     PUBLIC, schemas.Credentials, csrf="none"),
    Endpoint("POST",   "/auth/register",                                              accounts.register,                  PUBLIC, schemas.Registration, csrf="none"),
    Endpoint("POST",   "/auth/link",                                                  accounts.redeem_link,               PUBLIC, schemas.Link, csrf="none"),
    Endpoint("POST",   "/auth/reset",                                                 accounts.reset_by_link,             PUBLIC, schemas.ResetByLink, csrf="none"),
    Endpoint("POST",   "/auth/logout",                                                accounts.logout,                    USER),
    Endpoint("GET",    "/auth/me",                                                    accounts.me,                        USER),
    Endpoint("POST",   "/auth/password",                                              accounts.change_password,           USER,   schemas.PasswordChange),
    Endpoint("POST",   "/auth/name",                                                  accounts.change_name,               USER,   schemas.NameChange),
    Endpoint("POST",   "/auth/delete",                                                accounts.delete_account,            USER,   schemas.AccountDeletion),
    Endpoint("GET",    "/auth/sessions",                                              accounts.list_sessions,             USER),
    Endpoint("DELETE", "/auth/sessions/{session_id}",                                 accounts.delete_session,            USER),

    Endpoint("POST",   "/tokens",                                                     accounts.create_token,              USER,   schemas.TokenRequest),
    Endpoint("GET",    "/tokens",                                                     accounts.list_tokens,               USER),
    Endpoint("DELETE", "/tokens/{token_id}",                                          accounts.delete_token,              USER),

    Endpoint("POST",   "/admin/bootstrap",                                            accounts.bootstrap,                 PUBLIC, schemas.Bootstrap, csrf="none"),
    Endpoint("GET",    "/admin/users",                                                accounts.list_users,                ADMIN),
    Endpoint("PATCH",  "/admin/users/{user_id}",                                      accounts.change_user,               ADMIN,  schemas.UserChange),
    Endpoint("DELETE", "/admin/users/{user_id}",                                      accounts.delete_user,               ADMIN),
    Endpoint("POST",   "/admin/users/{user_id}/reset-link",                           accounts.create_reset_link,         ADMIN),
    Endpoint("POST",   "/admin/invites",                                              accounts.create_invite,             ADMIN,  schemas.InviteRequest),
    Endpoint("GET",    "/admin/invites",                                              accounts.list_invites,              ADMIN),
    Endpoint("POST",   "/admin/invites/{invite_id}/revoke",                           accounts.revoke_invite,             ADMIN),
    Endpoint("GET",    "/admin/providers",                                            servers.list_servers,               ADMIN),
    Endpoint("POST",   "/admin/providers",                                            servers.add_server,                 ADMIN,  schemas.NewServer),
    Endpoint("POST",   "/admin/provider-test",                                        servers.test_server,                ADMIN,  schemas.ServerAddress),
    Endpoint("PATCH",  "/admin/providers/{provider_id}",                              servers.change_server,              ADMIN,  schemas.ServerChange),
    Endpoint("DELETE", "/admin/providers/{provider_id}",                              servers.remove_server,              ADMIN),

    Endpoint("GET",    "/defaults",                                                   conversations.get_defaults,         USER),
    Endpoint("PATCH",  "/defaults",                                                   conversations.change_defaults,      USER,   schemas.DefaultsChange),
    Endpoint("POST",   "/conversations",                                              conversations.create_conversation,  USER,   schemas.NewConversation, limit=MESSAGE_BYTES),
    Endpoint("GET",    "/conversations",                                              conversations.list_conversations,   USER,   query=schemas.ConversationQuery),
    Endpoint("GET",    "/conversations/{conversation_id}",                            conversations.get_conversation,     USER),
    Endpoint("PATCH",  "/conversations/{conversation_id}",                            conversations.change_conversation,  USER,   schemas.ConversationChange),
    Endpoint("DELETE", "/conversations/{conversation_id}",                            conversations.delete_conversation,  USER,   query=schemas.DeleteQuery),
    Endpoint("POST",   "/conversations/{conversation_id}/restore",                    conversations.restore_conversation, USER),
    Endpoint("POST",   "/conversations/{conversation_id}/presence",                   conversations.note_presence,        USER,   schemas.Presence),
    Endpoint("POST",   "/bulk",                                                       conversations.change_conversations, USER,   schemas.BulkChange),
    Endpoint("GET",    "/folders",                                                    prompts.list_folders,               USER),
    Endpoint("POST",   "/folders",                                                    prompts.add_folder,                 USER,   schemas.FolderName),
    Endpoint("PATCH",  "/folders/{folder_id}",                                        prompts.rename_folder,              USER,   schemas.FolderName),
    Endpoint("DELETE", "/folders/{folder_id}",                                        prompts.delete_folder,              USER),
    Endpoint("GET",    "/prompts",                                                    prompts.list_prompts,               USER),
    Endpoint("POST",   "/prompts",                                                    prompts.add_prompt,                 USER,   schemas.NewPrompt),
    Endpoint("PATCH",  "/prompts/{prompt_id}",                                        prompts.change_prompt,              USER,   schemas.PromptChange),
    Endpoint("DELETE", "/prompts/{prompt_id}",                                        prompts.delete_prompt,              USER),
    Endpoint("GET",    "/presets",                                                    prompts.list_presets,               USER),
    Endpoint("POST",   "/presets",                                                    prompts.add_preset,                 USER,   schemas.NewPreset),
    Endpoint("PATCH",  "/presets/{preset_id}",                                        prompts.change_preset,              USER,   schemas.PresetChange),
    Endpoint("DELETE", "/presets/{preset_id}",                                        prompts.delete_preset,              USER),
    Endpoint("GET",    "/search",                                                     conversations.search,               USER,   query=schemas.SearchQuery),

    Endpoint("GET",    "/conversations/{conversation_id}/messages",                   messages.list_messages,             USER,   query=schemas.MessageQuery),
    Endpoint("POST",   "/conversations/{conversation_id}/messages",                   messages.add_message,               USER,   schemas.AddedMessage, limit=MESSAGE_BYTES),
    Endpoint("GET",    "/conversations/{conversation_id}/messages/{message_id}",      messages.get_message,               USER,   query=schemas.RenderQuery),
    Endpoint("DELETE", "/conversations/{conversation_id}/messages/{message_id}",      messages.delete_message,            USER),
    Endpoint("POST",   "/conversations/{conversation_id}/messages/{message_id}/edit", messages.edit_answer,               USER,   schemas.EditedAnswer, limit=MESSAGE_BYTES),
    Endpoint("POST",   "/conversations/{conversation_id}/branch",                     messages.branch,                    USER,   schemas.BranchRequest),
    Endpoint("PATCH",  "/conversations/{conversation_id}/queue/{queued_id}",          messages.change_queued,             USER,   schemas.QueuedContent),
    Endpoint("DELETE", "/conversations/{conversation_id}/queue/{queued_id}",          messages.remove_queued,             USER),
    Endpoint("POST",   "/conversations/{conversation_id}/queue/{queued_id}/send",     answers.send_queued,                USER,   schemas.AnswerRequest),
    Endpoint("POST",   "/conversations/{conversation_id}/active",                     messages.select_version,            USER,   schemas.Selection),
    Endpoint("GET",    "/conversations/{conversation_id}/context",                    messages.get_context,               USER,   query=schemas.ContextQuery),
    Endpoint("GET",    "/context",                                                    messages.get_context,               USER,   query=schemas.ContextQuery),
    Endpoint("GET",    "/messages/{message_id}/request",                              messages.get_sent_request,          USER),
    Endpoint("GET",    "/images/{image_id}",                                          messages.get_image,                 USER),
    Endpoint("POST",   "/attachments",                                                attachments.upload,                 USER,   None, query=schemas.UploadQuery),
    Endpoint("GET",    "/attachments/{attachment_id}",                                attachments.get_attachment,         USER),
    Endpoint("POST",   "/attachments/{attachment_id}/password",                       attachments.enter_password,         USER,   schemas.DocumentPassword),
    Endpoint("GET",    "/attachments/{attachment_id}/content",                        attachments.get_content,            USER),
    Endpoint("GET",    "/attachments/{attachment_id}/pages",                          attachments.list_pages,             USER,   query=schemas.PagesQuery),
    Endpoint("GET",    "/attachments/{attachment_id}/search",                         attachments.search,                 USER,   query=schemas.PageSearchQuery),
    Endpoint("POST",   "/render",                                                     messages.render_markdown,           USER,   schemas.Markdown, limit=RENDER_BYTES),

    Endpoint("POST",   "/conversations/{conversation_id}/stream",                     answers.stream,                     USER,   schemas.AnswerRequest, csrf="lenient"),
    Endpoint("POST",   "/chat/retry",                                                 answers.retry,                      USER,   schemas.RetryRequest),
    Endpoint("POST",   "/chat/continue",                                              answers.continue_answer,            USER,   schemas.ContinueRequest),
    Endpoint("POST",   "/chat/cancel/{generation_id}",                                answers.cancel,                     USER),
    Endpoint("GET",    "/generations/{generation_id}/stream",                         answers.resume,                     USER_OR_TOKEN,query=schemas.ResumeQuery),

    Endpoint("GET",    "/providers",                                                  servers.list_providers,             USER),
    Endpoint("GET",    "/providers/{provider_id}/models",                             servers.list_models,                USER),
    Endpoint("GET",    "/providers/{provider_id}/health",                             servers.provider_health,            USER),
    Endpoint("POST",   "/providers/{provider_id}/start",                              servers.start_provider,             ADMIN),
    Endpoint("POST",   "/providers/{provider_id}/models/load",                        servers.load_model,                 ADMIN,  schemas.ModelLoad),
    Endpoint("POST",   "/providers/{provider_id}/models/unload",                      servers.unload_model,               ADMIN,  schemas.ModelChoice),
    Endpoint("POST",   "/providers/{provider_id}/models/download",                    servers.download_model,             ADMIN,  schemas.DownloadRequest),
    Endpoint("GET",    "/providers/{provider_id}/downloads",                          servers.list_downloads,             ADMIN),

    Endpoint("POST",   "/import",                                                     data.import_upload,                 USER,   None, query=schemas.ImportQuery),
    Endpoint("GET",    "/export",                                                     data.export_all,                    USER,   query=schemas.ExportAllQuery),
    Endpoint("GET",    "/conversations/{conversation_id}/export",                     data.export_one,                    USER,   query=schemas.ExportQuery),
    Endpoint("GET",    "/usage",                                                      service.usage,                      USER),
    Endpoint("GET",    "/storage",                                                    service.storage,                    USER),

    Endpoint("POST",   "/control/link",                                               control.control_link,               CLI,    schemas.OptionalUser),
    Endpoint("POST",   "/control/session",                                            control.control_session,            CLI,    schemas.OptionalUser),
    Endpoint("POST",   "/control/invite",                                             control.control_invite,             CLI),
    Endpoint("POST",   "/control/password",                                           control.control_password,           CLI,    schemas.PasswordReset),
    Endpoint("POST",   "/control/tokens/create",                                      control.control_create_token,       CLI,    schemas.TokenOfUser),
    Endpoint("POST",   "/control/tokens/list",                                        control.control_list_tokens,        CLI,    schemas.OptionalUser),
    Endpoint("POST",   "/control/tokens/revoke",                                      control.control_revoke_token,       CLI,    schemas.TokenChoice),
    Endpoint("POST",   "/control/backup",                                             control.control_backup,             CLI,    schemas.BackupTarget),
    Endpoint("POST",   "/control/import",                                             control.control_import,             CLI,    schemas.ImportSources),
    Endpoint("POST",   "/control/export",                                             control.control_export,             CLI,    schemas.OptionalUser),

    Endpoint("GET",    "/v1/models",                                                  openai.list_models,                 TOKEN),
    Endpoint("GET",    "/v1/models/{model_id}",                                       openai.get_model,                   TOKEN),
    Endpoint("POST",   "/v1/chat/completions",                                        openai.chat,                        TOKEN,  None, csrf="none"),
    Endpoint("POST",   "/v1/embeddings",                                              openai.embed,                       TOKEN,  None, csrf="none"),

    Endpoint("GET",    "/openapi.json",                                               service.describe_api,               PUBLIC),
    Endpoint("GET",    "/health",                                                     service.health,                     PUBLIC),
    Endpoint("GET",    "/version",                                                    service.version,                    PUBLIC),
    Endpoint("GET",    "/",                                                           service.page,                       PUBLIC),
    Endpoint("GET",    "/static/{name}",                                              service.static,                     PUBLIC),
)
# fmt: on


async def _fireside_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FiresideError)
    request.state.code = error.code
    return error_response(error, request.state.request_id, request.scope["path"])


async def _no_route(request: Request, error: Exception) -> Response:
    allowed = getattr(error, "headers", None) or {}
    response = await _fireside_error(request, MethodNotAllowed() if "Allow" in allowed else NotFound("path"))
    response.headers.update(allowed)
    return response


async def _client_disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request", for the access log: nothing is sent


ERROR_HANDLERS: Any = {
    FiresideError: _fireside_error,
    ClientDisconnect: _client_disconnected,
    404: _no_route,
    405: _no_route,
}


def create_app(config: Config) -> Starlette:
    """Return the application, which opens its parts when it starts and closes them when it stops. The caller holds db.lock."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                app.state.fireside = await _open(config, stack)
            except Exception as failure:
                app.state.failure = failure  # for __main__: uvicorn only logs it
                raise
            yield

    app = Starlette(routes=list(ROUTES), lifespan=lifespan, exception_handlers=ERROR_HANDLERS)
    app.router.redirect_slashes = False
    app.state.failure = None
    app.add_middleware(SecurityMiddleware, config=config)
    return app


async def _open(config: Config, stack: contextlib.AsyncExitStack) -> AppState:
    """Open the application's parts. `stack` closes them in reverse order."""
    data.make_upload_folder(config.data_dir)
    database = await db.open_database(config.database)
    stack.push_async_callback(database.close)
    engine = await stack.enter_async_context(aclosing(Engine(config)))
    providers = await stack.enter_async_context(aclosing(Providers(config, engine)))
    sandbox = await stack.enter_async_context(aclosing(Sandbox(preload=PRELOAD, spare=True)))
    checker = QuotationChecker(database, sandbox)
    hub = await stack.enter_async_context(aclosing(Hub(config, database, providers, checker)))
    auth = Auth(config, database)
    temporary = await stack.enter_async_context(aclosing(TemporaryChats(database, hub)))
    await hub.start()
    await temporary.start()
    await auth.start()
    reader = await stack.enter_async_context(aclosing(Reader(database, config.user_max_bytes)))
    await reader.wake()
    importer = await stack.enter_async_context(aclosing(Importer(database, config.user_max_bytes, reader.begin)))
    own = (Renderer(sandbox), Exporter(database), Receipts(database, providers))
    state = AppState(config, database, providers, hub, temporary, auth, reader, importer, *own)
    stack.push_async_callback(_cancel, asyncio.create_task(_run_housekeeping(state), name="housekeeping"))
    return state


async def _run_housekeeping(state: AppState) -> None:
    """Every hour make the day's backup, keep the newest `backups` of them, and delete expired rows.

    Check the whole file once. If it is damaged, the database refuses all writes from then on.
    """
    config, database, importer, temporary = state.config, state.database, state.importer, state.temporary

    async def succeeds(task: Callable[[], Awaitable[object]]) -> bool:
        """Run one task. Log its failure, so that the others still run."""
        try:
            await task()
        except (sqlite3.Error, db.DatabaseUnusable) as error:
            if isinstance(error, db.DatabaseUnusable) or db.is_damage(error):
                database.damaged = True
                log.critical("%s", db.advice(config.database, error))
            else:
                log.error("housekeeping: %s", error)
        except (FiresideError, OSError) as error:
            log.error("housekeeping: %s", error)
        except Exception:
            log.exception("housekeeping failed")
        else:
            return True
        return False

    await succeeds(importer.remove_leftovers)
    await asyncio.sleep(HOUSEKEEPING_DELAY_SECONDS)
    examined = False
    while True:
        examined = examined or await succeeds(lambda: db.in_background(db.check_file, config.database))
        await succeeds(temporary.clean_up)  # before the backup
        await succeeds(lambda: db.in_background(db.back_up_daily, config.database, config.backups))
        await succeeds(state.auth.clean_up)
        await succeeds(lambda: queries.accounts.remove_closed(database))
        await succeeds(lambda: database.write(queries.conversations.hide_expired))
        await succeeds(importer.remove_leftovers)
        await succeeds(lambda: database.write(queries.attachments.release_expired))
        await succeeds(lambda: queries.attachments.remove_released(database))
        await succeeds(state.reader.wake)
        await succeeds(lambda: database.write(queries.conversations.optimize))
        await asyncio.sleep(HOUSEKEEPING_INTERVAL_SECONDS)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Server(uvicorn.Server):
    """uvicorn with our connections. At its end it stops the generations first, because their streams keep connections open."""

    def __init__(self, app: Starlette, config: Config) -> None:
        self.app = app
        self.limits = Limits(config)
        self.on_started: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, self.limits),  # type: ignore[arg-type]
                backlog=ACCEPTS_PER_TURN,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=",".join(config.trusted_proxies) or None,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
                ws="none",
            )
        )

    async def on_tick(self, counter: int) -> bool:
        check_deadlines(self.server_state.connections)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(LISTEN_BACKLOG)  # asyncio has set it to ACCEPTS_PER_TURN
            if isinstance(listener, Listener):
                listener.is_busy = self.limits.are_strangers_waiting
        if self.started:
            gc.freeze()  # a full collection would look at all that was imported, and hold all answers up for 20 ms or more
            gc.enable()
            sys.setswitchinterval(SWITCH_SECONDS)
            limits.return_memory()
            try:
                self.on_started()
            except BaseException:
                await self.shutdown(sockets)
                raise

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        if state := getattr(self.app.state, "fireside", None):
            await state.hub.aclose()
        await super().shutdown(sockets)
