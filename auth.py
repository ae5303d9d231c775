"""Who is asking: passwords, sessions, CSRF tokens, invites, the first account, and the throttle on guessing.

The session cookie carries 32 random bytes, signed with a key that stays in the data directory; the database holds their SHA-256.
The CSRF token is an HMAC of the same bytes, so there is nothing more to store. Role and status are read anew on each request.
"""

import asyncio
import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import argon2
import itsdangerous

from . import accounts
from .accounts import User
from .config import Config
from .db import Database, Tx, ago, timestamp
from .errors import (
    AuthRequired,
    BootstrapDisabled,
    CsrfInvalid,
    Invalid,
    InvalidBootstrapToken,
    InvalidCredentials,
    RateLimited,
    StorageUnavailable,
)

T = TypeVar("T")

log = logging.getLogger("fireside.auth")

LINK_MINUTES = 10
INVITE_HOURS = (1, 720)
PASSWORD_LENGTH = (12, 256)
SEEN_SECONDS = 60  # how often a session in use is marked as seen

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
        raise Invalid("username: must be 1 to 64 letters, digits, dots, underscores or hyphens")
    return name


def _folded(username: str) -> str:
    return unicodedata.normalize("NFKC", username).casefold().strip()


def check_password(password: str, username: str, field: str = "password") -> None:
    """Raises Invalid for a password that is too short, too long, or among the first that anybody would try."""
    low, high = PASSWORD_LENGTH
    if not low <= len(password) <= high:
        raise Invalid(f"{field}: must have {low} to {high} characters")
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
        raise Invalid(f"{field}: is too easy to guess; a few unrelated words make a good one")


@functools.cache
def _common_passwords() -> frozenset[str]:
    lines = resources.files(__package__).joinpath("passwords.txt").read_text("utf-8").splitlines()
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


def same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def private_file(path: Path, make: Callable[[], str]) -> str:
    """The text of a file that only its owner can read, made on first use, whole or not at all."""
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text("utf-8"):
            return text
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    text = make()
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return text


class Throttle:
    """Failures by account and by address. The first five are free; then each costs a wait of 1, 2, 4 ... 30 s, until there has
    been none for an hour.

    Where an account has signed in from before, only its own failures there count: nobody elsewhere can keep its owner out.
    """

    FREE, LONGEST, MEMORY, KEYS = 5, 30, 3600, 10_000

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, and when the last was
        self._under_way: Counter[str] = Counter()
        self._ended = asyncio.Event()  # an attempt: for those that wait to begin one
        self._homes: OrderedDict[str, None] = OrderedDict()

    def login_keys(self, name: str, address: str) -> tuple[str, ...]:
        home = f"{name} at {address}"
        return (home,) if home in self._homes else (f"account {name}", f"address {address}")

    def remember(self, name: str, address: str) -> None:
        """This account has signed in from there."""
        self._homes.pop(f"{name} at {address}", None)
        self._homes[f"{name} at {address}"] = None
        if len(self._homes) > self.KEYS:
            self._homes.popitem(last=False)

    @contextlib.asynccontextmanager
    async def attempt(self, *keys: str) -> AsyncIterator[None]:
        """Around an attempt. Only a failure counts; a success forgives the first key altogether. Where those under way would use
        up what is free if they all failed, the next waits for one of them to end: many at once are refused no earlier, and
        guess no more, than one after the other. Raises RateLimited."""
        while True:
            wait = max(self._wait(key) for key in keys)
            if wait > 0:
                raise RateLimited(max(1, round(wait + 0.5)))
            if all(self._may_begin(key) for key in keys):
                break
            await self._ended.wait()
        self._under_way.update(keys)
        try:
            yield
        except StorageUnavailable:
            raise  # which nobody has guessed
        except BaseException:
            for key in keys:
                self._failures[key] = (self._count(key) + 1, time.monotonic())
                self._failures.move_to_end(key)
            while len(self._failures) > self.KEYS:
                self._failures.popitem(last=False)
            raise
        else:
            self._failures.pop(keys[0], None)
        finally:
            self._under_way -= Counter(keys)
            self._ended.set()
            self._ended = asyncio.Event()

    def _count(self, key: str) -> int:
        count, last = self._failures.get(key, (0, 0.0))
        return count if time.monotonic() - last < self.MEMORY else 0

    def _wait(self, key: str) -> float:
        """Seconds until the next may be tried."""
        beyond = self._count(key) - self.FREE
        return self._failures[key][1] + min(self.LONGEST, 2 ** (beyond - 1)) - time.monotonic() if beyond > 0 else 0

    def _may_begin(self, key: str) -> bool:
        under_way = self._under_way[key]
        return not under_way or self._count(key) + under_way <= self.FREE


class Auth:
    def __init__(self, config: Config, database: Database) -> None:
        self.config = config
        self.database = database
        self.throttle = Throttle()
        self.bootstrap_token = ""  # empty once there is a user
        key = private_file(config.data_dir / "session-key", lambda: secrets.token_urlsafe(32))
        self._key = key.encode()
        self._signer = itsdangerous.Signer(key, salt="fireside.session", digest_method=hashlib.sha256)
        self._hashing = asyncio.Semaphore(2)  # each takes 46 MiB and a core: more at once would stall the streams

    async def start(self) -> None:
        """Find or make the bootstrap token while there is no user, and drop what time has ended."""
        await self.clean_up()
        begun = await self.database.read(accounts.count_users) > 0
        if begun or self.config.bootstrap_token:
            self._forget_bootstrap()  # of an earlier start: the one in the settings is in force, and in no file
            self.bootstrap_token = "" if begun else self.config.bootstrap_token
        else:
            self.bootstrap_token = private_file(self.config.bootstrap_file, lambda: secrets.token_urlsafe(32))

    async def clean_up(self) -> None:
        await self.database.write(accounts.delete_stale, *self._ages())

    def _forget_bootstrap(self) -> None:
        self.bootstrap_token = ""
        self.config.bootstrap_file.unlink(missing_ok=True)

    def _ages(self) -> tuple[str, str]:
        return ago(days=self.config.session_idle_days), ago(days=self.config.session_days)

    # ---- sessions

    async def identify(self, cookie: str | None) -> Identity:
        """Whose session a cookie is. Raises AuthRequired."""
        token = self._unsigned(cookie)
        if token is None:
            raise AuthRequired
        session = self.database.read_here(accounts.get_session, digest(token), *self._ages())
        if session is None:
            raise AuthRequired
        if session.last_seen < ago(seconds=SEEN_SECONDS):
            with contextlib.suppress(StorageUnavailable):  # what can be read is still read when the disk is full
                await self.database.write(accounts.set_session_seen, session.id)
        return Identity(session.user, session.id, self._csrf(token))

    def check_csrf(self, identity: Identity, given: str | None) -> None:
        if given is None or not same(given, identity.csrf_token):
            raise CsrfInvalid

    def _csrf(self, token: str) -> str:
        return hmac.new(self._key, b"csrf:" + token.encode(), hashlib.sha256).hexdigest()

    def _unsigned(self, cookie: str | None) -> str | None:
        try:
            return self._signer.unsign(cookie.encode()).decode() if cookie else None
        except (itsdangerous.BadSignature, UnicodeError):
            return None

    async def _log_in(self, user: User, verified: str, visitor: Visitor) -> Login:
        """A session for whoever was let in while `verified` was the password's hash. Raises InvalidCredentials if it no longer is."""
        token = secrets.token_urlsafe(32)
        old = self._unsigned(visitor.cookie)
        replaces = digest(old) if old else None
        await self.database.write(
            accounts.add_session, user.id, digest(token), _shown(visitor.client), verified, replaces
        )
        log.info("login", extra={"user": user.id})
        return Login(user, self._signer.sign(token).decode(), self._csrf(token))

    # ---- ways in

    async def login(self, username: str, password: str, visitor: Visitor) -> Login:
        """Raises InvalidCredentials, in the same time whether the user exists or not, and RateLimited."""
        name = _folded(username)[:65]  # one more than a name can have: it is nobody's
        async with self.throttle.attempt(*self.throttle.login_keys(name, visitor.address)):
            found = await self.database.read(accounts.get_password, name)
            right = found is not None and found[0].status == "active"
            stored = found[1] if found is not None else _DUMMY
            right = await self._verify(stored, password) and right
            if not right or found is None:
                log.warning("login refused", extra={"address": visitor.address})
                raise InvalidCredentials
        self.throttle.remember(name, visitor.address)
        if _HASHER.check_needs_rehash(stored):
            anew = await self._hash(password)
            if not await self.database.write(accounts.set_password_hash, found[0].id, stored, anew):
                # Another login was faster, or the password is another by now.
                return await self.login(username, password, visitor)
            stored = anew
        return await self._log_in(found[0], stored, visitor)

    async def bootstrap(self, token: str, username: str, password: str, visitor: Visitor) -> Login:
        """The first account. Raises BootstrapDisabled, InvalidBootstrapToken."""
        if not self.bootstrap_token:
            raise BootstrapDisabled
        async with self.throttle.attempt(f"bootstrap {visitor.address}"):
            if not same(token, self.bootstrap_token):
                raise InvalidBootstrapToken
        name = clean_username(username)
        check_password(password, name)
        password_hash = await self._hash(password)
        user = await self.database.write(accounts.add_first_user, name, password_hash)
        self._forget_bootstrap()
        log.info("first account made", extra={"user": user.id})
        return await self._log_in(user, password_hash, visitor)

    async def register(self, code: str, username: str, password: str, visitor: Visitor) -> Login:
        """Raises InvalidInvite, UsernameExists."""
        async with self.throttle.attempt(f"invite {visitor.address}"):
            await self.database.read(accounts.check_invite, digest(code))
        name = clean_username(username)
        check_password(password, name)
        password_hash = await self._hash(password)
        user = await self.database.write(accounts.redeem_invite, digest(code), name, password_hash)
        log.info("invite redeemed", extra={"user": user.id})
        return await self._log_in(user, password_hash, visitor)

    async def redeem_link(self, token: str, visitor: Visitor) -> Login:
        """Raises InvalidCredentials."""
        async with self.throttle.attempt(f"link {visitor.address}"):
            found = await self.database.write(accounts.redeem_login_link, digest(token))
            if found is None:
                raise InvalidCredentials("This link is not valid any more. Ask for a new one: fireside login-link")
        return await self._log_in(*found, visitor)

    async def invite(self, created_by: int, role: str, hours: int) -> dict[str, object]:
        code = secrets.token_urlsafe(32)
        expires_at = timestamp(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours))
        invite_id = await self.database.write(accounts.add_invite, digest(code), role, created_by, expires_at)
        log.info("invite made", extra={"user": created_by})
        return {"id": invite_id, "invite_code": code, "role": role, "expires_at": expires_at}

    async def login_link(self, username: str | None) -> str:
        """A token that signs a browser in as this user, or as the first administrator, once. Raises NotFound."""
        return await self.database.write(add_login_link, username)

    async def reset_password(self, username: str | None, password: str) -> User:
        """By the owner of the machine, who needs no old one. All sessions end. Raises NotFound, Invalid."""
        name = clean_username(username) if username is not None else None
        user = await self.database.read(accounts.get_user_named, name)
        check_password(password, user.username)
        await self.database.write(accounts.set_password, user.id, await self._hash(password))
        log.warning("password reset", extra={"user": user.id})
        return user

    # ---- passwords

    async def change_password(self, identity: Identity, current: str, new: str) -> None:
        """All other sessions end. Raises InvalidCredentials when the current password is wrong, or becomes so meanwhile."""
        async with self.throttle.attempt(f"password {identity.user.id}"):
            found = await self.database.read(accounts.get_password, identity.user.username)
            if found is None or not await self._verify(found[1], current):
                raise InvalidCredentials("The current password is wrong.")
        check_password(new, identity.user.username, "new_password")
        password_hash = await self._hash(new)
        await self.database.write(
            accounts.set_password, identity.user.id, password_hash, identity.session_id, verified=found[1]
        )
        log.info("password changed", extra={"user": identity.user.id})

    async def _hash(self, password: str) -> str:
        return await self._in_thread(hash_password, password)

    async def _verify(self, stored: str, password: str) -> bool:
        def verify() -> bool:
            try:
                return _HASHER.verify(stored, password)
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, UnicodeError):
                return False

        return await self._in_thread(verify)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        async with self._hashing:
            return await asyncio.to_thread(function, *args)


def hash_password(password: str) -> str:
    return _HASHER.hash(password)


def add_login_link(tx: Tx, username: str | None) -> str:
    token = secrets.token_urlsafe(32)
    expires_at = timestamp(datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=LINK_MINUTES))
    name = clean_username(username) if username is not None else None
    accounts.add_login_link(tx, accounts.get_user_named(tx, name).id, digest(token), expires_at)
    return token


def _shown(client: str) -> str:
    return "".join(c for c in client if c.isprintable())[:200]
