"""Authentication: passwords, sessions, CSRF tokens, invites, login links and the first account.

The session cookie carries a random token, signed with a key in the data directory; the database stores the token's SHA-256. The CSRF
token is an HMAC of the same token, so it is not stored. Role and status are read from the database on each request.
"""

import asyncio
import contextlib
import datetime
import hashlib
import hmac
import json
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import itsdangerous

from . import queries
from .config import Config
from .db import Connection, Database, ago, timestamp, write_private
from .errors import (
    AuthRequired,
    BootstrapDisabled,
    CsrfInvalid,
    Forbidden,
    InvalidBootstrapToken,
    InvalidCredentials,
    InvalidInvite,
    InvalidToken,
    OwnAccount,
    RateLimited,
    StorageUnavailable,
)
from .queries.accounts import User
from .queries.tokens import Token
from .safety.logs import TERMINAL, audit
from .safety.passwords import NAME_LENGTH, casefold, check_new_name, check_password, clean_username, display_name
from .safety.queue import Slots
from .safety.throttle import Throttle, network

LINK_MINUTES = 10
RESET_LINK_HOURS = 24
INVITE_HOURS = (1, 720)
TOKEN_DAYS = (1, 3650)
TOKEN_PREFIX = "fs_"  # by which programs that search for leaked secrets can find it
SESSION_SEEN_SECONDS = 60  # between two updates of a session's last_seen
REFUSAL_LOG_SECONDS = 600  # between two lines in audit.log about refused passwords of one account
INVALID_RESET_LINK = "This link is no longer valid. Ask an administrator for a new one."
HASH_QUEUE_LENGTH = 64  # at 76 ms for a hash the last one waits for 5 s
HASH_QUEUE_LENGTH_PER_KEY = 24
HASH_QUEUE_RETRY_SECONDS = 5

# OWASP's second recommended set for Argon2id: 46 MiB, one pass, one lane; 76 ms where the library's default takes 297.
_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=47104, parallelism=1)

# The hash of no known password. Verifying against it takes as long as for a known user, so timing does not tell who has an account.
_DUMMY = f"$argon2id$v=19$m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}${'A' * 22}${'A' * 43}"


@dataclass(frozen=True)
class Identity:
    """The user and the session of a request."""

    user: User
    session_id: int
    csrf_token: str


@dataclass(frozen=True)
class Visitor:
    """A client that signs in: its User-Agent, its address, and its session cookie, if any."""

    client: str
    address: str
    cookie: str | None


@dataclass(frozen=True)
class Login:
    """A new session. `cookie` is the signed value of the session cookie."""

    user: User
    cookie: str
    csrf_token: str


def digest(token: str) -> bytes:
    """Return the SHA-256 of a token, which the database stores. A token has 256 random bits, so it needs no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def new_token() -> str:
    """Return a personal access token: the prefix, 256 random bits and their checksum, in hexadecimal."""
    secret = secrets.token_hex(32)
    return f"{TOKEN_PREFIX}{secret}{_checksum(secret)}"


def is_well_formed(token: str) -> bool:
    """Return whether the checksum of a token is right. That of a token with a typing error is wrong."""
    secret = token.removeprefix(TOKEN_PREFIX)[:64]
    return constant_time_equals(token, f"{TOKEN_PREFIX}{secret}{_checksum(secret)}")


def _checksum(secret: str) -> str:
    return f"{zlib.crc32(secret.encode('utf-8', 'replace')):08x}"


def constant_time_equals(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def private_file(path: Path, make: Callable[[], str]) -> str:
    """Return the text of a private file. If it is missing or empty, first write what `make` returns."""
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text("utf-8"):
            return text
    text = make()
    write_private(path, text)
    return text


class Auth:
    """All ways to sign in, and the sessions that they start."""

    def __init__(self, config: Config, database: Database) -> None:
        self.config = config
        self.database = database
        self._known_file = config.data_dir / "known-addresses"
        self._saving_known = asyncio.Lock()
        self.throttle = Throttle(_read_known(self._known_file))
        # By user id: the number of refusals not yet logged, and the time of the last line in the log.
        self._refusals: dict[int, tuple[int, float]] = {}
        self.bootstrap_token = ""  # empty once there is a user
        key = private_file(config.data_dir / "session-key", lambda: secrets.token_urlsafe(32))
        self._key = key.encode()
        self._signer = itsdangerous.Signer(key, salt="fireside.session", digest_method=hashlib.sha256)
        # Each hash takes 46 MiB and a core, so two run at a time: one for known users and one for strangers.
        self._known_users, self._strangers = Slots(1), Slots(1)

    async def start(self) -> None:
        """Delete expired sessions. While there is no user, read or create the bootstrap token."""
        await self.clean_up()
        has_users = await self.database.read(queries.accounts.count_users) > 0
        if has_users or self.config.bootstrap_token:
            self._delete_bootstrap_token()  # a configured token replaces the one that an earlier start created
            self.bootstrap_token = "" if has_users else self.config.bootstrap_token
        else:
            self.bootstrap_token = private_file(self.config.bootstrap_file, lambda: secrets.token_urlsafe(32))

    async def clean_up(self) -> None:
        """Delete expired sessions, login links and links that reset a password."""
        await self.database.write(queries.accounts.delete_stale, *self._session_limits())

    def _delete_bootstrap_token(self) -> None:
        self.bootstrap_token = ""
        self.config.bootstrap_file.unlink(missing_ok=True)
        self.config.setup_page.unlink(missing_ok=True)

    def _session_limits(self) -> tuple[str, str]:
        """Return the times before which a session must not have been seen last, and not have started."""
        return ago(days=self.config.session_idle_days), ago(days=self.config.session_days)

    # ---- sessions

    async def identify(self, cookie: str | None) -> Identity:
        """Return the user and session of a cookie. Raises AuthRequired."""
        token = self.unsign(cookie)
        if token is None:
            raise AuthRequired
        session = self.database.read_here(queries.accounts.get_session, digest(token), *self._session_limits())
        if session is None:
            raise AuthRequired
        if session.last_seen < ago(seconds=SESSION_SEEN_SECONDS):
            with contextlib.suppress(StorageUnavailable):  # a full disk does not stop reading
                await self.database.write_unsynced(queries.accounts.set_session_seen, session.id)
        return Identity(session.user, session.id, self._csrf(token))

    def check_csrf(self, identity: Identity, given: str | None) -> None:
        if given is None or not constant_time_equals(given, identity.csrf_token):
            raise CsrfInvalid

    def _csrf(self, token: str) -> str:
        return hmac.new(self._key, b"csrf:" + token.encode(), hashlib.sha256).hexdigest()

    def unsign(self, cookie: str | None) -> str | None:
        """Return the token of a session cookie, or None if the signature is wrong. The session may have ended."""
        try:
            return self._signer.unsign(cookie.encode()).decode() if cookie else None
        except (itsdangerous.BadSignature, UnicodeError):
            return None

    async def _log_in(self, user: User, verified: str, visitor: Visitor, by: str) -> Login:
        """Start a session, in place of the visitor's old one. `by` is the way of signing in, for the audit log.

        Raises InvalidCredentials if `verified`, the password hash when access was granted, is not the stored one any more."""
        token, old = secrets.token_urlsafe(32), self.unsign(visitor.cookie)
        client = "".join(c for c in visitor.client if c.isprintable())[:200]
        replaces = digest(old) if old else None
        await self.database.write(queries.accounts.add_session, user.id, digest(token), client, verified, replaces)
        audit("signed in", user, visitor.address, by=by)
        if self.throttle.remember(user.username, visitor.address):
            await self._save_known()
        return Login(user, self._signer.sign(token).decode(), self._csrf(token))

    async def _save_known(self) -> None:
        """Save Throttle.known in a thread: an fsync would hold up all streams."""
        async with self._saving_known:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(write_private, self._known_file, json.dumps(list(self.throttle.known)))

    # ---- personal access tokens

    async def create_token(
        self, user: User, name: str, record: bool, days: int | None, address: str = TERMINAL
    ) -> tuple[Token, str]:
        """Return a new token as it is listed, and its text, which is stored nowhere. Raises Invalid when there are too many."""
        text, expires_at = new_token(), _time_after(days=days) if days else None
        token = await self.database.write(queries.tokens.add_token, user.id, name, digest(text), record, expires_at)
        audit("token created", user, address, token=token.id)
        return token, text

    async def identify_token(self, text: str, address: str) -> tuple[Token, User]:
        """Return a token and its user. A valid one is not throttled. Raises InvalidToken, RateLimited."""
        found = self.database.read_here(queries.tokens.get_token, digest(text)) if is_well_formed(text) else None
        if found is None:
            with self.throttle.attempt(f"token {network(address)}"):
                raise InvalidToken(
                    "The token was revoked, has expired or never existed. Create another in the settings of Fireside."
                    if is_well_formed(text)
                    else "The token has a typing error, or is not a token of Fireside."
                )
        token, user = found
        if token.last_used is None or token.last_used < ago(seconds=SESSION_SEEN_SECONDS):
            with contextlib.suppress(StorageUnavailable):
                await self.database.write_unsynced(queries.tokens.set_token_used, token.id)
        return token, user

    async def revoke_token(self, user: User, token_id: int, address: str = TERMINAL) -> None:
        """Raises NotFound."""
        await self.database.write(queries.tokens.delete_token, user.id, token_id)
        audit("token revoked", user, address, token=token_id)

    # ---- ways in

    async def login(self, username: str, password: str, visitor: Visitor) -> Login:
        """Sign in with a password. Raises RateLimited, and InvalidCredentials after the same time for known and unknown users."""
        name = casefold(username)[: NAME_LENGTH + 1]  # a longer name matches no user
        queue = self._known_users if self.throttle.is_known(name, visitor.address) else self._strangers
        async with self._attempt(queue, *self.throttle.login_keys(name, visitor.address)):
            found = await self.database.read(queries.accounts.get_password, name)
            right = found is not None and found[0].status == "active"
            stored = found[1] if found is not None else _DUMMY
            right = await self._verify(stored, password) and right
            if found is not None and not right:
                self._audit_refusal(found[0], visitor.address)
            if not right or found is None:
                raise InvalidCredentials
        if _HASHER.check_needs_rehash(stored):
            rehashed = await self._hash(password, name)
            if not await self.database.write(queries.accounts.set_password_hash, found[0].id, stored, rehashed):
                return await self.login(username, password, visitor)  # another login or a new password was faster
            stored = rehashed
        return await self._log_in(found[0], stored, visitor, "password")

    async def bootstrap(self, token: str, username: str, password: str, visitor: Visitor) -> Login:
        """Create the first account. Raises BootstrapDisabled, InvalidBootstrapToken."""
        if not self.bootstrap_token:
            raise BootstrapDisabled
        with self.throttle.attempt(f"bootstrap {network(visitor.address)}"):
            if not constant_time_equals(token, self.bootstrap_token):
                raise InvalidBootstrapToken
        name = check_new_name(username, password)
        password_hash = await self._hash(password, name)
        add = queries.accounts.add_first_user
        user = await self.database.write(add, name, password_hash, display_name(username))
        self._delete_bootstrap_token()
        return await self._log_in(user, password_hash, visitor, "bootstrap token")

    async def register(self, code: str, username: str, password: str, visitor: Visitor) -> Login:
        """Create an account with an invite. Raises InvalidInvite, UsernameExists.

        A valid code is not throttled by address, but by code: UsernameExists tells who has an account."""
        try:
            await self.database.read(queries.accounts.check_invite, digest(code))
        except InvalidInvite:
            with self.throttle.attempt(f"invite {network(visitor.address)}"):
                raise
        name = check_new_name(username, password)
        async with self._attempt(self._known_users, f"names for invite {digest(code).hex()}"):
            password_hash = await asyncio.to_thread(_HASHER.hash, password)
            redeem = queries.accounts.redeem_invite
            user = await self.database.write(redeem, digest(code), name, password_hash, display_name(username))
        return await self._log_in(user, password_hash, visitor, "invite")

    async def redeem_link(self, token: str, visitor: Visitor) -> Login:
        """Sign in with a login link. A valid one is not throttled. Raises InvalidCredentials."""
        found = await self.database.write(queries.accounts.redeem_login_link, digest(token))
        if found is None:
            with self.throttle.attempt(f"link {network(visitor.address)}"):
                raise InvalidCredentials("This link is no longer valid. Run fireside login-link for a new one.")
        return await self._log_in(*found, visitor, "login link")

    async def reset_by_link(self, token: str, password: str, visitor: Visitor) -> Login:
        """Set a new password by an administrator's link, and sign in. All other sessions end. A valid link is not throttled.

        Raises InvalidCredentials, and Invalid for a weak password, after which the link still works."""
        user = await self.database.read(queries.accounts.get_reset_link, digest(token))
        if user is None:
            with self.throttle.attempt(f"link {network(visitor.address)}"):
                raise InvalidCredentials(INVALID_RESET_LINK)
        check_password(password, user.username)
        password_hash = await self._hash(password, user.username)
        if await self.database.write(queries.accounts.redeem_reset_link, digest(token), password_hash) is None:
            raise InvalidCredentials(INVALID_RESET_LINK)
        audit("password reset", user, visitor.address, by="reset link")
        return await self._log_in(user, password_hash, visitor, "reset link")

    async def reset_link(self, admin: User, user_id: int, address: str) -> tuple[str, str]:
        """Return the token of a link that sets a new password once, and when it expires. Raises NotFound, UserDisabled, OwnAccount."""
        _check_other(admin, user_id)
        token, expires_at = secrets.token_urlsafe(32), _time_after(hours=RESET_LINK_HOURS)
        user = await self.database.write(queries.accounts.add_reset_link, user_id, digest(token), expires_at)
        audit("reset link made", admin, address, about=user.username)
        return token, expires_at

    async def invite(self, user: User, role: str, hours: int, address: str = TERMINAL) -> dict[str, Any]:
        """Create an invite by `user`."""
        code = secrets.token_urlsafe(32)
        expires_at = _time_after(hours=hours)
        invite_id = await self.database.write(queries.accounts.add_invite, digest(code), role, user.id, expires_at)
        audit("invite made", user, address, invite=invite_id, role=role)
        return {"id": invite_id, "invite_code": code, "role": role, "expires_at": expires_at}

    async def lan_invite(self) -> str:
        """Return the code of the invite that `--lan` prints: the one of the last start while it is open, or else a new one."""
        file = self.config.data_dir / "lan-invite"
        with contextlib.suppress(OSError, InvalidInvite):
            code = file.read_text("utf-8")
            await self.database.read(queries.accounts.check_invite, digest(code))
            return code
        user = await self.user_named(None)
        code = str((await self.invite(user, "user", 24))["invite_code"])
        write_private(file, code)
        return code

    async def login_link(self, username: str | None) -> str:
        """Return a token that signs a browser in once, as this user (None: the first administrator). Raises NotFound."""
        user, token = await self.user_named(username), secrets.token_urlsafe(32)
        expires_at = _time_after(minutes=LINK_MINUTES)
        await self.database.write(queries.accounts.add_login_link, user.id, digest(token), expires_at)
        audit("login link made", user, TERMINAL)
        return token

    async def terminal_session(self, username: str | None, visitor: Visitor) -> Login:
        """Sign in for a command at the terminal, as this user (None: the first administrator). Raises NotFound, Forbidden."""
        if self.bootstrap_token:
            raise Forbidden("There is no account yet. Start Fireside and create the first one.")
        name = (await self.user_named(username)).username
        found = await self.database.read(queries.accounts.get_password, name)
        if found is None or found[0].status != "active":
            raise Forbidden("This account is disabled.")
        return await self._log_in(*found, visitor, "terminal")

    async def reset_password(self, username: str | None, password: str) -> User:
        """Set a password without the old one, for the owner at the terminal. All sessions end, and all tokens are revoked.

        Raises NotFound, Invalid.
        """
        user = await self.user_named(username)
        check_password(password, user.username)
        password_hash = await self._hash(password, user.username)

        def reset(conn: Connection) -> None:
            queries.accounts.set_password(conn, user.id, password_hash)
            queries.tokens.delete_tokens(conn, user.id)

        await self.database.write(reset)
        audit("password reset", user, TERMINAL)
        return user

    async def user_named(self, username: str | None) -> User:
        name = clean_username(username) if username is not None else None
        return await self.database.read(queries.accounts.get_user_named, name)

    # ---- names and the deletion of accounts

    async def change_name(self, identity: Identity, name: str, password: str, address: str) -> User:
        """Change the user's own name. Raises InvalidCredentials if the password is wrong, UsernameExists, Invalid.

        A taken name counts as a failure that no success clears: UsernameExists tells who has an account."""
        user_id, old = identity.user.id, identity.user.username
        username = check_new_name(name, password, "current_password")
        async with self._attempt(self._known_users, f"password {user_id}", f"names for user {user_id}"):
            verified = await self._verify_own(identity, password)
            change = queries.accounts.set_name
            user = await self.database.write(change, user_id, username, display_name(name), verified)
        self.throttle.rename(old, username)
        await self._save_known()
        audit("name changed", user, address, about=old)
        return user

    async def delete_own_account(self, identity: Identity, password: str, address: str) -> None:
        """Close the user's own account, for queries.accounts.remove_closed. Raises InvalidCredentials, LastAdmin."""
        async with self._attempt(self._known_users, f"password {identity.user.id}"):
            verified = await self._verify_own(identity, password)
        user = await self.database.write(queries.accounts.close_account, identity.user.id, verified)
        await self._forget(user)
        audit("account deleted", user, address)

    async def delete_user(self, admin: User, user_id: int, address: str) -> None:
        """Close another user's account, for queries.accounts.remove_closed. Raises NotFound, LastAdmin, OwnAccount."""
        _check_other(admin, user_id)
        user = await self.database.write(queries.accounts.close_account, user_id)
        await self._forget(user)
        audit("user deleted", admin, address, about=user.username)

    async def _forget(self, user: User) -> None:
        self.throttle.rename(user.username, None)
        await self._save_known()

    # ---- passwords

    async def change_password(self, identity: Identity, current: str, new: str, address: str) -> None:
        """Set a new password and end all other sessions. Raises InvalidCredentials if the current password is wrong, or has
        changed by the time the new one is stored."""
        async with self._attempt(self._known_users, f"password {identity.user.id}"):
            verified = await self._verify_own(identity, current)
        check_password(new, identity.user.username, "new_password")
        password_hash = await self._hash(new, identity.user.username)
        await self.database.write(
            queries.accounts.set_password, identity.user.id, password_hash, identity.session_id, verified=verified
        )
        audit("password changed", identity.user, address)

    async def _verify_own(self, identity: Identity, password: str) -> str:
        """Return the hash of the user's password, which matches. Raises InvalidCredentials."""
        stored = await self.database.read(queries.accounts.get_password_hash, identity.user.id)
        if not await self._verify(stored, password):
            raise InvalidCredentials("The current password is wrong.")
        return stored

    @contextlib.asynccontextmanager
    async def _attempt(self, queue: Slots, *keys: str) -> AsyncIterator[None]:
        """Wait for a turn to hash a password, and count a failure of the block. Raises RateLimited."""
        self.throttle.check(*keys)  # before waiting, so that the queue is free for others
        async with self._turn(queue, keys[0]):
            with self.throttle.attempt(*keys):
                yield

    @staticmethod
    def _turn(queue: Slots, key: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the context of a turn in the queue. Raises RateLimited when too many wait, in all or with this key."""
        if queue.waiting() >= HASH_QUEUE_LENGTH or queue.waiting(key) >= HASH_QUEUE_LENGTH_PER_KEY:
            raise RateLimited(HASH_QUEUE_RETRY_SECONDS)
        return queue.slot(key)

    async def _hash(self, password: str, name: str) -> str:
        async with self._turn(self._known_users, f"hash for {name}"):
            return await asyncio.to_thread(_HASHER.hash, password)

    async def _verify(self, stored: str, password: str) -> bool:
        def verify() -> bool:
            try:
                return _HASHER.verify(stored, password)
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, UnicodeError):
                return False

        return await asyncio.to_thread(verify)

    def _audit_refusal(self, user: User, address: str) -> None:
        """Log the first refusal of an account at once, the others as one line per REFUSAL_LOG_SECONDS with their number, so
        that strangers cannot fill the log."""
        now = time.monotonic()
        count, since = self._refusals.get(user.id, (0, now - REFUSAL_LOG_SECONDS))
        if now - since < REFUSAL_LOG_SECONDS:
            self._refusals[user.id] = (count + 1, since)
        else:
            audit("sign-in refused", user, address, count=count + 1)
            self._refusals[user.id] = (0, now)


def _check_other(admin: User, user_id: int) -> None:
    """Raise OwnAccount: for one's own account these actions need the password."""
    if user_id == admin.id:
        raise OwnAccount


def _time_after(**span: float) -> str:
    return timestamp(datetime.datetime.now(datetime.UTC) + datetime.timedelta(**span))


def _read_known(file: Path) -> list[str]:
    """Return Throttle.known as the last start saved it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [str(pair) for pair in json.loads(file.read_text("utf-8"))]
    return []
