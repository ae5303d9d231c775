"""Each guard taken away in turn, in a copy of the program: a test must miss it.

A mutant is a text of a file, which must stand there exactly once, and what takes its place. Its own tests run first, then, should
they have noticed nothing, all that are named in TESTS.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import Figures

ROOT = Path(__file__).parents[2]
AT_A_TIME = 2
SECONDS = 240  # that the tests of a mutant may take
AUTH, GUARD, CONNECTION, DB, QUERIES, SECURITY, RECOVERY = (
    f"tests/{name}.py"
    for name in (
        "test_auth",
        "web/test_middleware",
        "web/test_connection",
        "test_db",
        "queries/test_queries",
        "system/test_security",
        "system/test_recovery",
    )
)
AUTHZ = "tests/system/test_trust.py::test_it_holds[authz]"
STORAGE = "tests/system/test_trust.py::test_it_holds[full]", "tests/system/test_trust.py::test_it_holds[migration]"
TESTS = (QUERIES, DB, GUARD, SECURITY, RECOVERY, AUTHZ, AUTH, "tests/test_server.py", *STORAGE)


class Mutant(NamedTuple):
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


MUTANTS = (
    # what a request must be to get anywhere
    Mutant("web/middleware.py", "if len(hosts) != 1:", "if not hosts:", (GUARD,)),
    Mutant("web/middleware.py", "if name not in self.hosts and not (", "if False and not (", (GUARD,)),
    Mutant("web/middleware.py", "not (self.any_address and _is_address(name))", "not _is_address(name)", (GUARD,)),
    Mutant("web/middleware.py", "not (self.any_address and _is_address(name))", "not self.any_address", (GUARD,)),
    Mutant("web/middleware.py", "public.hostname, config.host, here)", "public.hostname, here)", (GUARD,)),
    Mutant("web/middleware.py", "if any(len(given) > 1 for given in values.values()):", "if False:", (GUARD,)),
    Mutant("web/middleware.py", "if origin in self.origins:", "if origin:", (GUARD,)),
    Mutant("web/middleware.py", "        if not own or (", "        if (", (AUTHZ,)),
    Mutant(
        "web/middleware.py",
        'site not in (None, "same-origin")',
        'site not in (None, "same-origin", "same-site")',
        (AUTHZ,),
    ),
    Mutant(
        "web/middleware.py",
        'site not in (None, "same-origin")',
        'site not in (None, "same-origin", "cross-site")',
        (GUARD,),
    ),
    Mutant(
        "web/middleware.py", 'not (site == "none" and scope["method"] in ("GET", "HEAD"))', 'site != "none"', (GUARD,)
    ),
    Mutant("web/middleware.py", 'scope["method"] in ("GET", "HEAD") and into ==', "into ==", (GUARD,)),
    Mutant("web/middleware.py", '(["navigate"], ["document"])', '(["navigate"], into[1])', (GUARD, SECURITY)),
    Mutant("web/middleware.py", "            self._check_host(headers)\n", "", (GUARD,)),
    Mutant("web/connection.py", "HEAD_BYTES = 16 * 1024", "HEAD_BYTES = 64 * 1024", (CONNECTION,)),
    Mutant("web/connection.py", "        if now <= self.deadline:", "        if True:", (CONNECTION,)),
    Mutant(
        "web/connection.py", "            self._set_deadline(KEEP_ALIVE_SECONDS)\n", "            pass\n", (CONNECTION,)
    ),
    Mutant(
        "web/connection.py", "            self.deadline = now + STALL_SECONDS\n", "            pass\n", (CONNECTION,)
    ),
    Mutant(
        "web/connection.py", "        return half if len(half) >= self.half else []", "        return []", (CONNECTION,)
    ),
    Mutant("web/connection.py", "            nearest.close_now()\n", "            pass\n", (CONNECTION,)),
    Mutant("web/middleware.py", 'b"x-content-type-options": b"nosniff"', 'b"x-nothing": b""', (GUARD,)),
    Mutant(
        "web/middleware.py",
        "for name, value in SECURITY_HEADERS.items() if name not in given",
        "for name, value in {}.items()",
        (GUARD,),
    ),
    # who may call what
    Mutant(
        "web/endpoint.py",
        'if not constant_time_equals(headers.get("authorization", ""), f"Bearer {call.state.secret}"):',
        "if False:",
        (AUTHZ,),
    ),
    Mutant(
        "web/endpoint.py",
        "    if access is PUBLIC:\n        return\n    auth, headers",
        "    if access is not OWNER:\n        return\n    auth, headers",
        (AUTHZ,),
    ),
    Mutant("web/endpoint.py", 'if csrf == "required" or (', "if (", (AUTHZ,)),
    Mutant(
        "web/endpoint.py",
        "(token is not None or call.request.state.foreign)",
        "call.request.state.foreign",
        (AUTH, "-k", "no_wrong_one"),
    ),
    Mutant("web/endpoint.py", "(token is not None or call.request.state.foreign)", "token is not None", (GUARD,)),
    Mutant("web/endpoint.py", 'if access is ADMIN and call.identity.user.role != "admin":', "if False:", (AUTHZ,)),
    Mutant(
        "web/endpoint.py",
        'if raw and content_type != "application/json":',
        "if False:",
        ("tests/test_server.py", "-k", "says_that_it_is_json"),
    ),
    Mutant(
        "web/endpoint.py",
        "            if size > limit:\n                raise BodyTooLarge",
        "            if False:\n                raise BodyTooLarge",
        ("tests/test_server.py", "-k", "too_large"),
    ),
    Mutant("web/endpoint.py", "PUBLIC_BYTES if access is PUBLIC else BODY_BYTES", "BODY_BYTES", (SECURITY,)),
    Mutant(
        "web/endpoint.py",
        "and len(text) <= 19 and 0 < int(text) < 2**63",
        "",
        ("tests/test_server.py", "-k", "named or by_a_number or object"),
    ),
    # whose session it is
    Mutant(
        "auth.py",
        "return self._signer.unsign(cookie.encode()).decode() if cookie else None",
        'return cookie.rpartition(".")[0] if cookie else None',
        (AUTH, "-k", "cookie_that_is_not_ours"),
    ),
    Mutant(
        "auth.py",
        "if given is None or not constant_time_equals(given, identity.csrf_token):",
        "if given is None:",
        (AUTHZ,),
    ),
    Mutant(
        "auth.py",
        "if given is None or not constant_time_equals(given, identity.csrf_token):",
        "if given is not None and not constant_time_equals(given, identity.csrf_token):",
        (AUTHZ,),
    ),
    Mutant("auth.py", 'b"csrf:" + token.encode()', 'b"csrf:"', (AUTHZ,)),
    Mutant("auth.py", "digest(old) if old else None", "None", (AUTH, "-k", "new_cookie")),
    Mutant(
        "queries/accounts.py",
        "WHERE id = ? AND password_hash = ? AND status = 'active'",
        "WHERE id = ? AND ? IS NOT NULL AND status = 'active'",
        (AUTH, "-k", "under_way"),
    ),
    Mutant("queries/accounts.py", "AND password_hash = ? AND status = 'active'", "AND password_hash = ?", (QUERIES,)),
    Mutant(
        "queries/accounts.py",
        "AND password_hash = coalesce(?3, password_hash)",
        "AND ?3 IS ?3",
        (AUTH, "-k", "under_way"),
    ),
    Mutant(
        "queries/accounts.py",
        "WHERE s.token_hash = ? AND s.last_seen > ? AND s.created_at > ? AND u.status",
        "WHERE s.token_hash = ? AND ?2 AND s.created_at > ?3 AND u.status",
        (AUTHZ, QUERIES),
    ),
    Mutant(
        "queries/accounts.py",
        "s.created_at > ? AND u.status = 'active'",
        "?3 AND u.status = 'active'",
        (AUTHZ, QUERIES),
    ),
    Mutant(
        "queries/accounts.py", "AND s.created_at > ? AND u.status = 'active'", "AND s.created_at > ?", (AUTHZ, QUERIES)
    ),
    Mutant(
        "queries/accounts.py",
        '"DELETE FROM sessions WHERE id = ? AND user_id = ?", (session_id, user_id)',
        '"DELETE FROM sessions WHERE id = ?", (session_id,)',
        (AUTHZ,),
    ),
    Mutant(
        "queries/accounts.py",
        'conn.execute("DELETE FROM sessions WHERE user_id = ? AND id IS NOT ?", (user_id, keep_session))',
        "pass",
        (QUERIES,),
    ),
    Mutant(
        "queries/accounts.py",
        '    conn.execute("DELETE FROM sessions WHERE user_id = ?", (user_id,))\n',
        "",
        (QUERIES,),
    ),
    Mutant(
        "queries/accounts.py",
        '"DELETE FROM sessions WHERE token_hash = ?", (replaces,)',
        '"DELETE FROM sessions WHERE token_hash = ?", (None,)',
        (QUERIES,),
    ),
    Mutant(
        "queries/accounts.py",
        "ORDER BY last_seen DESC, id DESC LIMIT ?2",
        "ORDER BY last_seen DESC, id DESC LIMIT ?2 * 100",
        (QUERIES,),
    ),
    # who gets a session
    Mutant(
        "auth.py",
        'right = found is not None and found[0].status == "active"',
        "right = found is not None",
        (AUTH, "-k", "says_more"),
    ),
    Mutant("auth.py", "right = await self._verify(stored, password) and right", "pass", (AUTH, "-k", "says_more")),
    Mutant(
        "auth.py",
        "right = await self._verify(stored, password) and right",
        "right = right and await self._verify(stored, password)",
        (AUTH, "-k", "unknown_name"),
    ),
    Mutant(
        "auth.py",
        "async with self._attempt(queue, *self.throttle.login_keys(name, visitor.address)):",
        "if True:",
        (AUTH, "-k", "guessing_is_slowed"),
    ),
    Mutant(
        "auth.py",
        'with self.throttle.attempt(f"bootstrap {network(visitor.address)}"):',
        "if True:",
        (AUTH, "-k", "guessing_the_bootstrap"),
    ),
    Mutant("auth.py", 'with self.throttle.attempt(f"invite {network(visitor.address)}"):', "if True:", (SECURITY,)),
    Mutant("auth.py", 'with self.throttle.attempt(f"link {network(visitor.address)}"):', "if True:", (SECURITY,)),
    Mutant(
        "auth.py",
        'self._attempt(self._known_users, f"password {identity.user.id}")',
        'self._turn(self._known_users, "")',
        (SECURITY,),
    ),
    Mutant(
        "auth.py",
        'self._attempt(self._known_users, f"names for invite {digest(code).hex()}")',
        'self._turn(self._known_users, "")',
        (AUTH, "-k", "few_names"),
    ),
    Mutant(
        "auth.py",
        "self._known_users if self.throttle.is_known(name, visitor.address) else",
        "",
        (AUTH, "-k", "thousand_strangers"),
    ),
    Mutant("auth.py", "if queue.waiting() >= HASH_QUEUE_LENGTH or", "if", (AUTH, "-k", "thousand_strangers")),
    Mutant("safety/throttle.py", "if self.is_known(name, address):", "if False:", (SECURITY,)),
    Mutant("safety/throttle.py", "if wait > 0:", "if False:", (AUTH, "-k", "five_failures")),
    Mutant("safety/throttle.py", "        self.check(*keys)\n        try:", "        try:", (AUTH, "-k", "at_once")),
    Mutant("safety/throttle.py", "time.monotonic() - last < self.MEMORY_SECONDS", "True", (AUTH, "-k", "forgotten")),
    Mutant(
        "safety/throttle.py", "while len(self._failures) > self.KEYS:", "while False:", (AUTH, "-k", "grow_without_end")
    ),
    Mutant(
        "queries/accounts.py", "name.translate(_LOOK_ALIKES) == looks", "name == username", (AUTH, "-k", "look_like")
    ),
    Mutant(
        "auth.py",
        "if not constant_time_equals(token, self.bootstrap_token):",
        "if False:",
        (AUTH, "-k", "guessing_the_bootstrap"),
    ),
    Mutant(
        "auth.py",
        "if found is None or not await self._verify(found[1], current):",
        "if found is None:",
        (AUTH, "-k", "new_password"),
    ),
    Mutant("auth.py", "not low <= len(password) <= high", "False", (AUTH, "-k", "anybody_would_try")),
    Mutant("auth.py", "in _common_passwords()", "in ()", (SECURITY,)),
    Mutant("auth.py", "        or len(_without_walks(folded)) < 3\n", "", (SECURITY,)),
    Mutant("auth.py", "        or _period(folded) < 6\n", "", (SECURITY,)),
    Mutant("auth.py", "or _WELL_KNOWN.fullmatch(without_name)", "", (AUTH, "-k", "anybody_would_try")),
    Mutant("auth.py", "or len(without_name) < 6", "", (SECURITY,)),
    Mutant(
        "db.py",
        "os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600",
        "os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644",
        (SECURITY,),
    ),
    Mutant(
        "auth.py",
        '        if text := path.read_text("utf-8"):\n            return text',
        '        return path.read_text("utf-8")',
        (SECURITY,),
    ),
    Mutant("queries/accounts.py", "    if count_users(conn):\n        raise BootstrapDisabled\n", "", (QUERIES,)),
    Mutant("queries/accounts.py", "code_hash = ?2 AND used_at IS NULL AND", "code_hash = ?2 AND", (QUERIES,)),
    Mutant(
        "queries/accounts.py",
        "AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1",
        "AND used_at IS NULL AND expires_at > ?1",
        (QUERIES,),
    ),
    Mutant(
        "queries/accounts.py",
        "AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1",
        "AND used_at IS NULL AND revoked_at IS NULL",
        (QUERIES,),
    ),
    Mutant("queries/accounts.py", 'AND used_at IS NULL AND revoked_at IS NULL",\n', 'AND 0",\n', (QUERIES,)),
    Mutant("queries/accounts.py", "if row is None or row[1] <= now():", "if row is None:", (QUERIES,)),
    Mutant(
        "queries/accounts.py", "FROM users WHERE id = ? AND status = 'active'", "FROM users WHERE id = ?", (QUERIES,)
    ),
    Mutant(
        "queries/accounts.py",
        "    if not admins:\n        raise LastAdmin",
        "    if False:\n        raise LastAdmin",
        (QUERIES,),
    ),
    # whose object it is
    Mutant(
        "queries/conversations.py",
        "WHERE id = ? AND user_id = ? AND (deleted_at IS NOT NULL) = ?",
        "WHERE id = ? AND ? AND (deleted_at IS NOT NULL) = ?",
        (QUERIES,),
    ),
    Mutant(
        "queries/conversations.py",
        "WHERE id = ? AND user_id = ? AND (deleted_at IS NOT NULL) = ?",
        "WHERE id = ? AND user_id = ? AND ? IS NOT NULL",
        (QUERIES,),
    ),
    Mutant(
        "queries/conversations.py",
        "(deleted_at IS NOT NULL) = ? AND hidden = 0",
        "(deleted_at IS NOT NULL) = ?",
        (QUERIES,),
    ),
    Mutant("queries/conversations.py", '"c.user_id = :user AND c.hidden = 0', '"c.hidden = 0', (QUERIES,)),
    Mutant(
        "queries/generations.py",
        "WHERE c.user_id = ? AND c.hidden = 0 AND m.role",
        "WHERE ? AND c.hidden = 0 AND m.role",
        (QUERIES,),
    ),
    Mutant(
        "queries/search.py",
        'return f\'owner : "u{user_id}" AND text : (',
        "return f'text : (",
        ("tests/queries/test_search.py",),
    ),
    Mutant(
        "queries/messages.py",
        '        owned(conn, user_id, row[0] if row else 0)\n    except NotFound:\n        raise NotFound("image")',
        '        owned(conn, user_id, row[0]) if not row else 0\n    except NotFound:\n        raise NotFound("image")',
        (AUTHZ,),
    ),
    Mutant(
        "queries/generations.py",
        '        owned(conn, user_id, row["conversation_id"] if row else 0)\n    except NotFound:\n        raise NotFound("generation")',
        '        row or owned(conn, user_id, 0)\n    except NotFound:\n        raise NotFound("generation")',
        (QUERIES, "tests/system/test_resume.py"),
    ),
    Mutant(
        "queries/messages.py",
        "    owned(conn, user_id, conversation_id)\n    _message_of(conn, conversation_id, message_id)\n",
        "    owned(conn, user_id, conversation_id)\n",
        (QUERIES,),
    ),
    Mutant(
        "queries/messages.py", "        _message_of(conn, conversation_id, parent_id)\n", "        pass\n", (QUERIES,)
    ),
    Mutant(
        "chat/hub.py", "generation is None or generation.job.user_id != user_id or", "generation is None or", (AUTHZ,)
    ),
    Mutant(
        "chat/hub.py",
        "if generation is not None and generation.job.user_id == user_id:",
        "if generation is not None:",
        (AUTHZ, "tests/system/test_resume.py", "tests/chat/test_hub.py"),
    ),
    Mutant(
        "web/handlers.py",
        "max_age=max_age, httponly=True",
        "max_age=max_age, httponly=False",
        (AUTH, "-k", "kept_from_scripts"),
    ),
    # what is kept, and how
    Mutant(
        "db.py",
        "            if connection.in_transaction:  # SQLite rolls back",
        "            if False:  # SQLite rolls back",
        (DB,),
    ),
    Mutant("db.py", "PRAGMA foreign_keys = ON", "PRAGMA foreign_keys = OFF", (DB,)),
    Mutant(
        "db.py",
        'connection.execute("PRAGMA synchronous = FULL")  # NORMAL',
        'connection.execute("PRAGMA synchronous = NORMAL")  # NORMAL',
        (DB,),
    ),
    Mutant("db.py", 'PRAGMA query_only = ON")\n        return', 'PRAGMA query_only = OFF")\n        return', (DB,)),
    Mutant("db.py", "PRAGMA secure_delete = ON", "PRAGMA secure_delete = OFF", (DB,)),
    Mutant("db.py", "PRAGMA trusted_schema = OFF", "PRAGMA trusted_schema = ON", (DB,)),
    Mutant("db.py", "PRAGMA cell_size_check = ON", "PRAGMA cell_size_check = OFF", (DB, RECOVERY)),
    Mutant("db.py", "    if version > newest:", "    if False:", (DB,)),
    Mutant("db.py", "if not empty and connection", "if False and connection", (DB,)),
    Mutant(
        "db.py",
        "            if version and path.stat().st_size <= CHECK_AT_START_BYTES:\n                check(connection)\n",
        "",
        (DB,),
    ),
    Mutant("db.py", '    if found != "ok":', "    if False:", (DB,)),
    Mutant("db.py", "    if orphan is not None:", "    if False:", (DB,)),
    Mutant("db.py", "create_private(path).close()", "pass", (DB,)),
    Mutant(
        "db.py",
        "data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)",
        "data_dir.mkdir(parents=True, exist_ok=True)",
        (DB,),
    ),
    Mutant("db.py", "        while not _lock_file(descriptor):", "        while False:", (DB,)),
    Mutant("db.py", "create_private(partial).close()", "pass", (DB, RECOVERY)),
    Mutant("db.py", "            check(writer)\n", "", (DB, RECOVERY)),
    Mutant(
        "db.py",
        '                copy(path, path.parent / "backups" / f"before-schema',
        '                str(path.parent / "backups" / f"before-schema',
        (DB,),
    ),
    Mutant("db.py", "                self.damaged = True", "                pass", (DB,)),
    Mutant("db.py", "if self.damaged and connection is self._writer:", "if False:", (RECOVERY,)),
    Mutant("db.py", '        "SQLITE_FULL": ', '        "FULL": ', (RECOVERY,)),
    Mutant("db.py", '        "SQLITE_BUSY": ', '        "BUSY": ', (RECOVERY,)),
    Mutant("db.py", '        "SQLITE_IOERR": ', '        "IOERR": ', (DB, STORAGE[0])),
    Mutant("db.py", "        version = examine(source)\n", "        version = 1\n", (RECOVERY,)),
    Mutant("db.py", 'for ending in ("-wal", "-shm", ""):', 'for ending in ("",):', (RECOVERY,)),
    Mutant("db.py", "    if _restored(path).exists():\n        _put_in_place(path)\n", "", (RECOVERY,)),
    Mutant("db.py", "[:-keep]:\n        old.unlink()", "[:0]:\n        old.unlink()", (RECOVERY,)),
    Mutant("db.py", "if not file.name.startswith(PUT_AWAY)", "if True", (RECOVERY,)),
    Mutant("db.py", 'str(error).startswith("Could not decode to UTF-8")', "False", (RECOVERY,)),
    Mutant("cli/client.py", 'if db.lock_holder(settings.data_dir) != told["pid"]:', "if False:", (RECOVERY,)),
    Mutant("__main__.py", "    os.umask(0o077)", "    os.umask(0o022)", (RECOVERY,)),
)


def misplaced() -> list[str]:
    """The mutants whose text does not stand in its file exactly once."""
    files = {mutant.file: (ROOT / mutant.file).read_text("utf-8") for mutant in MUTANTS}
    return [
        f"{mutant.file}: {files[mutant.file].count(mutant.text)} x {mutant.text}"
        for mutant in MUTANTS
        if files[mutant.file].count(mutant.text) != 1
    ]


NOTHING = Mutant("__init__.py", "", "", ())


def prove(size: int) -> Figures:
    figures = Figures(wrong=misplaced())
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        untouched = pool.submit(_is_caught, NOTHING)
        for mutant, caught in zip(MUTANTS, pool.map(_is_caught, MUTANTS[:size]), strict=False):
            figures.expect(caught, f"{mutant.file}: nothing notices {mutant.instead!r} for {mutant.text!r}")
        if untouched.result():
            figures.wrong.append("the tests fail though nothing was taken away")
    files = sorted({mutant.file for mutant in MUTANTS})
    figures.more = f"{figures.cases - len(figures.wrong)} of {figures.cases} noticed, in {', '.join(files)}"
    return figures


def _is_caught(mutant: Mutant) -> bool:
    """Whether a test fails when this is in place of that."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fireside"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
        file = copy / mutant.file
        if mutant.text:
            file.write_text(file.read_text("utf-8").replace(mutant.text, mutant.instead), "utf-8")
        return any(_fails(copy, tests) for tests in (mutant.tests, TESTS) if tests)


def _fails(copy: Path, tests: tuple[str, ...]) -> bool:
    """PYTHONPATH comes before what is installed: `fireside` is the copy."""
    environ = os.environ | {"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as late:  # a test that fails may leave a thread that ends with nothing
        return b" failed" in (late.stdout or b"")
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]  # else it cannot even be imported
    return done.returncode != 0
