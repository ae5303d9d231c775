"""Authentication: passwords, sessions, CSRF tokens, invites, login links and the first account.

The session cookie carries 32 random bytes, signed with a key that stays in the data directory; the database holds their SHA-256.
The CSRF token is an HMAC of the same bytes, so it is not stored. Role and status are read from the database on each request.
"""

import asyncio
import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import json
import os
import re
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import argon2
import itsdangerous

from . import queries
from .config import Config
from .db import Database, ago, create_private, timestamp
from .errors import (
    AuthRequired,
    BootstrapDisabled,
    CsrfInvalid,
    Invalid,
    InvalidBootstrapToken,
    InvalidCredentials,
    InvalidInvite,
    StorageUnavailable,
)
from .queries.accounts import User
from .safety.logs import TERMINAL, audit
from .safety.throttle import Queue, Throttle, network

LINK_MINUTES = 10
INVITE_HOURS = (1, 720)
PASSWORD_LENGTH = (12, 256)
SEEN_SECONDS = 60  # how often a session in use is marked as seen
REFUSAL_SECONDS = 600  # from one line on refused passwords of an account to the next

# OWASP's second recommended set for Argon2id: 46 MiB, one pass, one lane; 76 ms where the library's default takes 297.
_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=47104, parallelism=1)


def _dummy_hash() -> str:
    """A hash that no password has, and that takes as long to verify as any: what an unknown user is checked against."""
    salt, key = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}${salt}${key}"


_DUMMY = _dummy_hash()

_WELL_KNOWN = re.compile(
    r"(?:password|passw0rd|p@ssw0rd|qwerty|letmein|welcome|iloveyou|admin|administrator|changeme|default|secret|fireside|"
    r"football|baseball|superman|batman|dragon|monkey|sunshine|princess|trustno|master|shadow|michael|jordan|liverpool|"
    r"starwars|whatever|computer|internet|hello|login|abc|asdf|zxcv|1q2w3e4r|qazwsx|[0-9!@#$%^&*._-])+"
    r"|1q2w3e4r5t6y7u8i9o0p|qwertyuiop(?:asdfghjkl)?(?:zxcvbnm)?|abcdefghijkl[a-z]*|correcthorsebatterystaple"
)


_KEYBOARD = {
    key: (y, x)
    for y, row in enumerate(("1234567890", "qwertyuiop", "asdfghjkl;", "zxcvbnm,./"))
    for x, key in enumerate(row)
}


@dataclass(frozen=True)
class Identity:
    """Who sent a request, and in which session."""

    user: User
    session_id: int
    csrf_token: str


@dataclass(frozen=True)
class Visitor:
    """Where somebody who wants in comes from: what their browser calls itself, its address, the cookie that it has."""

    client: str
    address: str
    cookie: str | None


@dataclass(frozen=True)
class Login:
    """A new session: the cookie's value, and what the answer tells."""

    user: User
    cookie: str
    csrf_token: str


def clean_username(username: str) -> str:
    """The one form in which a name is stored and compared. Raises Invalid."""
    name = _folded(username)
    if not 1 <= len(name) <= 64 or not all(c.isalnum() or c in "._-" for c in name):
        raise Invalid("username must be 1 to 64 letters, digits, dots, underscores or hyphens.")
    return name


def check_new_username(name: str) -> None:
    """Raise Invalid for a name that mixes scripts whose letters look alike. Names that have such a mix already stay valid."""
    if len({unicodedata.name(c, "").partition(" ")[0] for c in name} & {"LATIN", "GREEK", "CYRILLIC"}) > 1:
        raise Invalid("username must not mix Latin, Greek and Cyrillic letters.")


def _folded(username: str) -> str:
    return unicodedata.normalize("NFKC", username).casefold().strip()


def check_password(password: str, username: str, field: str = "password") -> None:
    """Raises Invalid for a password that is too short, too long, or among the first that anybody would try."""
    low, high = PASSWORD_LENGTH
    if not low <= len(password) <= high:
        raise Invalid(f"{field} must have {low} to {high} characters.")
    folded = password.casefold()
    without_name = folded.replace(username, "") if len(username) >= 3 else folded
    if (
        len(set(folded)) < 4
        or len(without_name) < 6
        or _WELL_KNOWN.fullmatch(without_name)
        or _period(folded) < 6
        or len(_without_walks(folded)) < 3
        or hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()[:10] in _common_passwords()
    ):
        raise Invalid(f"{field} is too easy to guess. Choose a few unrelated words.")


@functools.cache
def _common_passwords() -> frozenset[str]:
    lines = resources.files("fireside").joinpath("passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _period(text: str) -> int:
    """The length of what it repeats: 4 of lovelovelove."""
    return next(n for n in range(1, len(text) + 1) if text == (text[:n] * len(text))[: len(text)])


def _without_walks(folded: str) -> str:
    """What is left without runs of three and more neighbouring keys, such as 1qaz2wsx."""
    left, run = "", ""
    for key in folded:
        if run and not _are_neighbours(run[-1], key):
            left, run = left + (run if len(run) < 3 else ""), ""
        run += key
    return left + (run if len(run) < 3 else "")


def _are_neighbours(one: str, other: str) -> bool:
    if one not in _KEYBOARD or other not in _KEYBOARD:
        return one == other
    (y, x), (v, u) = _KEYBOARD[one], _KEYBOARD[other]
    return abs(y - v) <= 1 and abs(x - u) <= 1


def digest(token: str) -> bytes:
    """What the database keeps of a random token. 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def constant_time_equals(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def private_file(path: Path, make: Callable[[], str]) -> str:
    """Return the text of a private file. If it is missing or empty, write it first with the text that `make` returns."""
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text("utf-8"):
            return text
    text = make()
    write_private(path, text)
    return text


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with create_private(partial) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Auth:
    def __init__(self, config: Config, database: Database) -> None:
        self.config = config
        self.database = database
        self._known_file = config.data_dir / "known-addresses"
        self.throttle = Throttle(_read_known(self._known_file))
        self._refusals: dict[int, tuple[int, float]] = {}  # by user: how many are not in the audit log, and since when
        self.bootstrap_token = ""  # empty once there is a user
        key = private_file(config.data_dir / "session-key", lambda: secrets.token_urlsafe(32))
        self._key = key.encode()
        self._signer = itsdangerous.Signer(key, salt="fireside.session", digest_method=hashlib.sha256)
        # Each hash takes 46 MiB and a core, so two run at a time: one for known users and one for strangers.
        self._known_users, self._strangers = Queue(), Queue()

    async def start(self) -> None:
        """Read or make the bootstrap token while there is no user, and delete expired sessions."""
        await self.clean_up()
        begun = await self.database.read(queries.accounts.count_users) > 0
        if begun or self.config.bootstrap_token:
            self._forget_bootstrap()  # a token from the settings replaces the one of an earlier start
            self.bootstrap_token = "" if begun else self.config.bootstrap_token
        else:
            self.bootstrap_token = private_file(self.config.bootstrap_file, lambda: secrets.token_urlsafe(32))

    async def clean_up(self) -> None:
        await self.database.write(queries.accounts.delete_stale, *self._ages())

    def _forget_bootstrap(self) -> None:
        self.bootstrap_token = ""
        self.config.bootstrap_file.unlink(missing_ok=True)
        self.config.setup_page.unlink(missing_ok=True)

    def _ages(self) -> tuple[str, str]:
        return ago(days=self.config.session_idle_days), ago(days=self.config.session_days)

    # ---- sessions

    async def identify(self, cookie: str | None) -> Identity:
        """Whose session a cookie is. Raises AuthRequired."""
        token = self._unsigned(cookie)
        if token is None:
            raise AuthRequired
        session = self.database.read_here(queries.accounts.get_session, digest(token), *self._ages())
        if session is None:
            raise AuthRequired
        if session.last_seen < ago(seconds=SEEN_SECONDS):
            with contextlib.suppress(StorageUnavailable):  # what can be read is still read when the disk is full
                await self.database.write(queries.accounts.set_session_seen, session.id)
        return Identity(session.user, session.id, self._csrf(token))

    def check_csrf(self, identity: Identity, given: str | None) -> None:
        if given is None or not constant_time_equals(given, identity.csrf_token):
            raise CsrfInvalid

    def _csrf(self, token: str) -> str:
        return hmac.new(self._key, b"csrf:" + token.encode(), hashlib.sha256).hexdigest()

    def _unsigned(self, cookie: str | None) -> str | None:
        try:
            return self._signer.unsign(cookie.encode()).decode() if cookie else None
        except (itsdangerous.BadSignature, UnicodeError):
            return None

    async def _log_in(self, user: User, verified: str, visitor: Visitor, by: str) -> Login:
        """Start a session. `verified`: the password hash that was in force when access was granted; `by`: the way of signing in.

        Raises InvalidCredentials if the hash has changed since."""
        token = secrets.token_urlsafe(32)
        old = self._unsigned(visitor.cookie)
        replaces = digest(old) if old else None
        await self.database.write(
            queries.accounts.add_session, user.id, digest(token), _shown(visitor.client), verified, replaces
        )
        audit("signed in", user, visitor.address, by=by)
        if self.throttle.remember(user.username, visitor.address):
            with contextlib.suppress(OSError):
                write_private(self._known_file, json.dumps(list(self.throttle.known)))
        return Login(user, self._signer.sign(token).decode(), self._csrf(token))

    # ---- ways in

    async def login(self, username: str, password: str, visitor: Visitor) -> Login:
        """Sign in with a password. Raises InvalidCredentials, after the same time whether the user exists or not, and RateLimited."""
        name = _folded(username)[:65]  # a name has at most 64 characters, so a longer one matches no user
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
            anew = await self._hash(password, name)
            if not await self.database.write(queries.accounts.set_password_hash, found[0].id, stored, anew):
                # Another login was faster, or the password has changed.
                return await self.login(username, password, visitor)
            stored = anew
        return await self._log_in(found[0], stored, visitor, "password")

    async def bootstrap(self, token: str, username: str, password: str, visitor: Visitor) -> Login:
        """Create the first account. Raises BootstrapDisabled, InvalidBootstrapToken."""
        if not self.bootstrap_token:
            raise BootstrapDisabled
        with self.throttle.attempt(f"bootstrap {network(visitor.address)}"):
            if not constant_time_equals(token, self.bootstrap_token):
                raise InvalidBootstrapToken
        name = clean_username(username)
        check_new_username(name)
        check_password(password, name)
        password_hash = await self._hash(password, name)
        user = await self.database.write(queries.accounts.add_first_user, name, password_hash)
        self._forget_bootstrap()
        return await self._log_in(user, password_hash, visitor, "bootstrap token")

    async def register(self, code: str, username: str, password: str, visitor: Visitor) -> Login:
        """Create an account with an invite. Raises InvalidInvite, UsernameExists.

        A valid code is never throttled by address. Attempts with the same code are, because UsernameExists tells who has an account."""
        try:
            await self.database.read(queries.accounts.check_invite, digest(code))
        except InvalidInvite:
            with self.throttle.attempt(f"invite {network(visitor.address)}"):
                raise
        name = clean_username(username)
        check_new_username(name)
        check_password(password, name)
        async with self._attempt(self._known_users, f"names for invite {digest(code).hex()}"):
            password_hash = await asyncio.to_thread(hash_password, password)
            user = await self.database.write(queries.accounts.redeem_invite, digest(code), name, password_hash)
        return await self._log_in(user, password_hash, visitor, "invite")

    async def redeem_link(self, token: str, visitor: Visitor) -> Login:
        """Sign in with a login link. A valid one is never throttled. Raises InvalidCredentials."""
        found = await self.database.write(queries.accounts.redeem_login_link, digest(token))
        if found is None:
            with self.throttle.attempt(f"link {network(visitor.address)}"):
                raise InvalidCredentials("This link is not valid any more. Ask for a new one: fireside login-link")
        return await self._log_in(*found, visitor, "login link")

    async def invite(self, user: User, role: str, hours: int, address: str = TERMINAL) -> dict[str, object]:
        """Make an invite in the name of `user`."""
        code = secrets.token_urlsafe(32)
        expires_at = timestamp(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours))
        invite_id = await self.database.write(queries.accounts.add_invite, digest(code), role, user.id, expires_at)
        audit("invite made", user, address, invite=invite_id, role=role)
        return {"id": invite_id, "invite_code": code, "role": role, "expires_at": expires_at}

    async def lan_invite(self) -> str:
        """Return the code of the invite that `--lan` prints: that of the last start if it is still open, else a new one."""
        file = self.config.data_dir / "lan-invite"
        with contextlib.suppress(OSError, InvalidInvite):
            code = file.read_text("utf-8")
            await self.database.read(queries.accounts.check_invite, digest(code))
            return code
        user = await self.database.read(queries.accounts.get_user_named, None)
        code = str((await self.invite(user, "user", 24))["invite_code"])
        write_private(file, code)
        return code

    async def login_link(self, username: str | None) -> str:
        """Return a token that signs a browser in once, as this user or as the first administrator. Raises NotFound."""
        token = secrets.token_urlsafe(32)
        expires_at = timestamp(datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=LINK_MINUTES))
        name = clean_username(username) if username is not None else None
        user = await self.database.read(queries.accounts.get_user_named, name)
        await self.database.write(queries.accounts.add_login_link, user.id, digest(token), expires_at)
        audit("login link made", user, TERMINAL)
        return token

    async def reset_password(self, username: str | None, password: str) -> User:
        """Set a password without the old one, for the owner at the terminal. All sessions end. Raises NotFound, Invalid."""
        name = clean_username(username) if username is not None else None
        user = await self.database.read(queries.accounts.get_user_named, name)
        check_password(password, user.username)
        await self.database.write(queries.accounts.set_password, user.id, await self._hash(password, user.username))
        audit("password reset", user, TERMINAL)
        return user

    # ---- passwords

    async def change_password(self, identity: Identity, current: str, new: str, address: str) -> None:
        """Set a new password. All other sessions end. Raises InvalidCredentials if the current password is wrong or has changed
        by the time the new one is stored."""
        async with self._attempt(self._known_users, f"password {identity.user.id}"):
            found = await self.database.read(queries.accounts.get_password, identity.user.username)
            if found is None or not await self._verify(found[1], current):
                raise InvalidCredentials("The current password is wrong.")
        check_password(new, identity.user.username, "new_password")
        password_hash = await self._hash(new, identity.user.username)
        await self.database.write(
            queries.accounts.set_password, identity.user.id, password_hash, identity.session_id, verified=found[1]
        )
        audit("password changed", identity.user, address)

    @contextlib.asynccontextmanager
    async def _attempt(self, queue: Queue, *keys: str) -> AsyncIterator[None]:
        """Wait for a turn to hash a password, as an attempt that the throttle counts. Raises RateLimited."""
        self.throttle.check(*keys)  # before waiting, so that the queue is free for others
        async with queue.turn(keys[0]):
            with self.throttle.attempt(*keys):
                yield

    async def _hash(self, password: str, name: str) -> str:
        async with self._known_users.turn(f"hash for {name}"):
            return await asyncio.to_thread(hash_password, password)

    async def _verify(self, stored: str, password: str) -> bool:
        def verify() -> bool:
            try:
                return _HASHER.verify(stored, password)
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, UnicodeError):
                return False

        return await asyncio.to_thread(verify)

    def _audit_refusal(self, user: User, address: str) -> None:
        """Log the first refusal of an account, then one line per REFUSAL_SECONDS with the number of the others, so that
        strangers cannot fill the log."""
        now = time.monotonic()
        count, since = self._refusals.get(user.id, (0, now - REFUSAL_SECONDS))
        if now - since < REFUSAL_SECONDS:
            self._refusals[user.id] = (count + 1, since)
        else:
            audit("sign-in refused", user, address, count=count + 1)
            self._refusals[user.id] = (0, now)


def _read_known(file: Path) -> list[str]:
    """Return the pairs that Throttle.known had at the last start."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [str(pair) for pair in json.loads(file.read_text("utf-8"))]
    return []


def hash_password(password: str) -> str:
    return _HASHER.hash(password)


def _shown(client: str) -> str:
    return "".join(c for c in client if c.isprintable())[:200]
