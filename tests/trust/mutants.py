"""Remove each check in turn: a test must fail without it.

GUARDS names functions that refuse something, and the tests that try it. From their source, mutants are made without a list of their own:

- an `if` that raises or returns becomes `if False`, or loses one operand of its `and` or `or`;
- a statement that calls a function named check..., _check... or owned is removed;
- an SQL text loses one of its conditions.

Each mutant is a copy of the program, in which first the named tests run, then those of TESTS. SURVIVORS are conditions that are not checks.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import ROOT, Figures

PROCESSES = 2
TIMEOUT_SECONDS = 300  # of the tests of a mutant; all of TESTS take 90 where nothing else runs
# A failed test may leave a thread that never ends, for which Python would wait.
PYTEST = "import os, pytest, sys; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"

AUTH, ACCOUNTS, DB = "tests/test_auth.py", "tests/test_accounts.py", "tests/test_db.py"
ENDPOINT, MIDDLEWARE = "tests/test_server.py", "tests/web/test_middleware.py"
QUERIES, SECURITY, RECOVERY = "tests/queries", "tests/system/test_security.py", "tests/system/test_recovery.py"
SERVERS = "tests/web/test_servers.py"
CONFORMANCE, DISK = "tests/system/test_conformance.py", "tests/system/faults/test_disk.py"
TOKENS, CHATS = "tests/web/test_tokens.py", "tests/web/test_chats.py"
AUTHZ = "tests/system/test_trust.py::test_it_holds[authz]"
TESTS = (
    QUERIES, DB, MIDDLEWARE, SECURITY, AUTHZ, AUTH, ACCOUNTS, ENDPOINT, TOKENS, CHATS, RECOVERY, "tests/chat",
    "tests/system/test_resume.py",
)  # fmt: skip

GUARDS: dict[str, tuple[str, ...]] = {
    "web/middleware.py SecurityMiddleware.__call__": (MIDDLEWARE,),
    "web/middleware.py SecurityMiddleware._check_host": (MIDDLEWARE,),
    "web/middleware.py SecurityMiddleware._check_origin": (MIDDLEWARE, AUTHZ),
    "web/endpoint.py Request.path_arguments": (ENDPOINT,),
    "web/endpoint.py Request.chunks": (ENDPOINT,),
    "web/endpoint.py Endpoint._authorize": (AUTHZ,),
    "web/endpoint.py _identify_by_token": (AUTHZ, TOKENS),
    "web/endpoint.py Endpoint._read_body": (ENDPOINT,),
    "safety/passwords.py check_new_name": (AUTH, ACCOUNTS),
    "auth.py _check_other": (ACCOUNTS,),
    "safety/passwords.py check_password": (AUTH, SECURITY),
    "auth.py Auth.check_csrf": (AUTHZ,),
    "auth.py Auth.login": (AUTH,),
    "auth.py Auth.bootstrap": (AUTH,),
    "auth.py Auth.change_password": (AUTH,),
    "auth.py Auth.reset_by_link": (ACCOUNTS,),
    "auth.py Auth.reset_link": (ACCOUNTS,),
    "auth.py Auth.delete_user": (ACCOUNTS,),
    "auth.py Auth._verify_own": (AUTH, ACCOUNTS),
    "safety/throttle.py Throttle.check": ("tests/safety/test_throttle.py", AUTH),
    "queries/accounts.py add_first_user": (QUERIES,),
    "queries/accounts.py get_user": (QUERIES,),
    "queries/accounts.py set_user": (QUERIES,),
    "queries/accounts.py _check_name": (ACCOUNTS, AUTH),
    "queries/accounts.py set_name": (QUERIES, ACCOUNTS),
    "queries/accounts.py _set_verified": (QUERIES, ACCOUNTS, AUTH),
    "queries/accounts.py _check_admin_remains": (QUERIES, ACCOUNTS),
    "queries/accounts.py close_account": (QUERIES, ACCOUNTS),
    "queries/accounts.py remove_emptied": (QUERIES, ACCOUNTS),
    "queries/accounts.py add_reset_link": (QUERIES, ACCOUNTS),
    "queries/accounts.py get_reset_link": (QUERIES, ACCOUNTS),
    "queries/accounts.py set_password": (QUERIES, AUTH),
    "queries/accounts.py add_session": (QUERIES,),
    "queries/accounts.py get_session": (QUERIES, AUTHZ),
    "queries/accounts.py delete_session": (QUERIES, AUTHZ),
    "queries/accounts.py redeem_login_link": (QUERIES,),
    "queries/accounts.py redeem_invite": (QUERIES,),
    "queries/accounts.py check_invite": (QUERIES,),
    "queries/accounts.py revoke_invite": (QUERIES,),
    "queries/tokens.py add_token": (TOKENS,),
    "queries/tokens.py get_token": (AUTHZ, TOKENS),
    "queries/tokens.py list_valid_ids": (TOKENS,),
    "queries/tokens.py delete_token": (AUTHZ, TOKENS),
    "chat/hub.py Hub.relay": (CHATS, TOKENS),
    "queries/conversations.py owned": (QUERIES,),
    "queries/conversations.py find_conversations": (QUERIES,),
    "queries/conversations.py owned_ids": (QUERIES,),
    "queries/conversations.py _find_owned": (QUERIES,),
    "queries/conversations.py change_many": (QUERIES,),
    "queries/conversations.py hide_temporary": (QUERIES,),
    "queries/folders.py check_folder": (QUERIES,),
    "queries/folders.py find_folder": (QUERIES,),
    "queries/folders.py add_folder": (QUERIES,),
    "queries/folders.py rename_folder": (QUERIES,),
    "queries/folders.py delete_folder": (QUERIES,),
    "queries/messages.py add_message": (QUERIES,),
    "queries/messages.py find_message": (QUERIES, "tests/chat/test_queued.py"),
    "queries/messages.py set_active": (QUERIES,),
    "queries/messages.py get_message": (QUERIES,),
    "queries/messages.py edit_answer": (QUERIES,),
    "queries/messages.py refuse_while_generating": (QUERIES,),
    "queries/bin.py delete_message": (QUERIES,),
    "queries/bin.py restore": (QUERIES,),
    "queries/branches.py _begin": (QUERIES,),
    "queries/attachments.py owned_attachment": (QUERIES, AUTHZ),
    "queries/attachments.py get_image": (QUERIES, AUTHZ),
    "queries/attachments.py attach": (QUERIES,),
    "queries/attachments.py finish_upload": (QUERIES,),
    "queries/attachments.py release": (QUERIES,),
    "queries/attachments.py add_pages": (QUERIES,),
    "queries/attachments.py read_again": (QUERIES,),
    "queries/messages.py get_message_row": (QUERIES,),
    "queries/generations.py get_recording": (QUERIES, AUTHZ),
    "queries/generations.py get_sent_request": ("tests/chat/test_receipt.py",),
    "queries/generations.py begin_answer": (QUERIES,),
    "queries/generations.py _job": (QUERIES,),
    "queries/generations.py begin_continuation": ("tests/chat/test_continuation.py",),
    "queries/queued.py _queued": ("tests/chat/test_queued.py", AUTHZ),
    "queries/queued.py add_queued": ("tests/chat/test_queued.py", AUTHZ),
    "queries/prompts.py set_defaults": (QUERIES,),
    "queries/prompts.py _default_preset": (QUERIES,),
    "queries/prompts.py _owned": (QUERIES, AUTHZ),
    "queries/prompts.py _named": (QUERIES,),
    "queries/prompts.py _check_count": (QUERIES,),
    "queries/prompts.py save_imported": ("tests/transfer/test_importer.py",),
    "queries/prompts.py _add": (QUERIES,),
    "queries/prompts.py change_saved": (QUERIES,),
    "web/handlers/servers.py _changed_address": (SERVERS,),
    "providers.py Providers._changeable": (SERVERS,),
    "chat/hub.py Hub.cancel": (AUTHZ, CONFORMANCE, DISK),
    "chat/hub.py Hub.follow": (AUTHZ, CHATS),
    "db.py fetch": (QUERIES,),
    "db.py check": (DB,),
    "db.py _version": (DB,),
    "db.py prepare": (DB,),
    "db.py copy": (DB, RECOVERY),
    "db.py restore": (RECOVERY,),
    "db.py Database._run": (RECOVERY,),
}
SURVIVORS = {
    "web/middleware.py SecurityMiddleware.__call__: if status",
    "auth.py Auth.login: found is None in if not right or found is None",
    # In all conversations, rows with the same SHA-256 have the same text. The condition lets SQLite use the primary key.
    "queries/generations.py get_sent_request: conversation_id = ?",
    # A shortcut: what follows finds the same generation after a read of the database.
    "chat/hub.py Hub.follow: if generation is not None and generation.job.user_id == user_id"
    " and (token_id in (None, generation.job.token_id))",
    # Sets is_default to 0 where it is 1. Without the condition it would also write the user's other presets, with the same values.
    "queries/prompts.py set_defaults: is_default = 1",
}

_CHECK = re.compile(r"_?check|owned")
_CONDITION = re.compile(r"(^|WHERE | AND )((?:\([^()]*\)|(?! AND |WHERE | ORDER | LIMIT| RETURNING)[^()])+)")
_COMPARISON = re.compile(r"(?:[\w.]+|\([^()]*\)) (?:=|<|>|IS|NOT IN) ")


class Mutant(NamedTuple):
    guard: str  # a key of GUARDS
    change: str  # what is removed
    number: int  # of the change in its function

    def __str__(self) -> str:
        return f"{self.guard}: {self.change}"


def mutants() -> Iterator[Mutant]:
    """All mutants. Raises LookupError for a guard that does not exist."""
    for guard in GUARDS:
        _, function = _parse(guard)
        for number, (change, _, _) in enumerate(_changes(function)):
            mutant = Mutant(guard, change, number)
            if str(mutant) not in SURVIVORS:
                yield mutant


def _source(mutant: Mutant) -> str:
    """The text of the changed file."""
    module, function = _parse(mutant.guard)
    _, node, replacement = list(_changes(function))[mutant.number]
    _replace(module, node, replacement)
    return ast.unparse(ast.fix_missing_locations(module))


def _parse(guard: str) -> tuple[ast.Module, ast.AST]:
    file, name = guard.split()
    module = ast.parse((ROOT / file).read_text("utf-8"))
    return module, _function(module, name)


def _function(module: ast.Module, name: str) -> ast.AST:
    node: ast.AST = module
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", "") == part]
        if not found:
            raise LookupError(name)
        node = found[0]
    return node


def _changes(function: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """What is removed, the node, and what takes its place."""
    for node in ast.walk(function):
        match node:
            case ast.If(test=test, body=[ast.Raise() | ast.Return(), *_]):
                yield f"if {ast.unparse(test)}", test, ast.Constant(False)
                if isinstance(test, ast.BoolOp):
                    for operand in test.values:
                        rest = [value for value in test.values if value is not operand]
                        short = rest[0] if len(rest) == 1 else ast.BoolOp(test.op, rest)
                        yield f"{ast.unparse(operand)} in if {ast.unparse(test)}", test, short
            case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))) if _CHECK.match(name):
                yield ast.unparse(node), node, ast.Pass()
            case ast.Constant(value=str(sql)):
                for before, condition in _CONDITION.findall(sql):
                    if _COMPARISON.match(condition):
                        used = [f"({name} IS NULL OR 1)" for name in re.findall(r"[?:]\w*", condition)]
                        instead = sql.replace(before + condition, before + (" AND ".join(used) or "1"), 1)
                        yield condition, node, ast.Constant(instead)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(node)

    Replace().visit(tree)


def prove(size: int) -> Figures:
    figures = Figures()
    chosen = list(mutants())[:size]
    with ThreadPoolExecutor(PROCESSES) as pool:
        unchanged = pool.submit(_is_noticed, None)
        for mutant, noticed in zip(chosen, pool.map(_is_noticed, chosen), strict=True):
            figures.expect(noticed, f"no test fails: {mutant}")
        if unchanged.result():
            figures.wrong.append("the tests fail for the unchanged program")
    figures.more = f"{figures.cases - len(figures.wrong)} of {figures.cases} noticed, in {len(GUARDS)} functions"
    return figures


def _is_noticed(mutant: Mutant | None) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fireside"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info")
        shutil.copytree(ROOT, program, ignore=ignored)
        if mutant is None:
            return _fails(program, TESTS)
        (program / mutant.guard.split()[0]).write_text(_source(mutant), "utf-8")
        return _fails(program, GUARDS[mutant.guard]) or _fails(program, TESTS)


def _fails(program: Path, tests: tuple[str, ...]) -> bool:
    """Whether one of the tests fails. Long ones count only if they are named one by one."""
    named = [test for test in tests if "::" in test]
    files = [test for test in tests if "::" not in test]
    runs = (["-m", "not long", *files] if files else [], named)
    return any(_run_fails(program, *run) for run in runs if run)


def _run_fails(program: Path, *arguments: str) -> bool:
    """Whether a run of pytest fails. PYTHONPATH comes before what is installed, so `fireside` is the copy."""
    environ = os.environ | {"PYTHONPATH": str(program.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PYTEST, "-q", "-x", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command, cwd=program, env=environ, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode != 0


if __name__ == "__main__":
    for each in mutants():
        print(each)
