"""Search: all messages that contain the terms are found, no others, and any text is a valid query."""

# ruff: noqa: RUF001 (letters of other alphabets are what is tested)

import asyncio
import contextlib
import re
import time
import unicodedata
from collections.abc import Iterator
from functools import partial

import pytest
from fireside import db
from fireside.db import Connection
from fireside.queries import attachments, conversations, messages, search
from fireside.queries.search import INDEXED_BYTES, MARK, SNIPPET_CHARACTERS, UNMARK
from fireside.web.handlers import conversations as handlers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..documents import library
from ..live import PATIENCE, Person, Running, code, good, until
from ..upstream import Upstream, answer
from .conftest import purge

anything = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
typed = st.one_of(
    anything,
    st.text("\"*^:+-(){}[]\\'%_ANDORNOTEAR abc字漢나", max_size=40),
    st.lists(st.sampled_from(['"', "NEAR(", "OR", "AND", "NOT", "owner:", "*", "^", "a", "字"]), max_size=20).map(
        " ".join
    ),
)
word = st.text("abcdefghijklmnopqrstuvwxyzäöüßéñçøåαβγδжзийł0123456789", min_size=1, max_size=12)
examples = partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def rolled_back(connection: Connection) -> Iterator[Connection]:
    connection.execute("SAVEPOINT example")
    try:
        yield connection
    finally:
        connection.execute("ROLLBACK TO example")


def say(conn: Connection, text: str, title: str = "t", user_id: int = 1) -> int:
    """Add a conversation with one message."""
    conversation_id = conversations.add_conversation(conn, user_id, {"title": title}).id
    return messages.add_message(conn, user_id, conversation_id, text)


def add(conn: Connection, conversation_id: int, content: str, at: str) -> None:
    """Add a message with a time."""
    message_id = messages.add_message(conn, 1, conversation_id, content)
    conn.execute("UPDATE messages SET created_at = ? WHERE id = ?", (at, message_id))


def document(conn: Connection, name: str, pages: list[str], user_id: int = 1) -> int:
    """Upload a document and read it."""
    attachment = library.upload(conn, user_id, f"{name} {pages}".encode(), name, "application/pdf")
    attachments.set_opened(conn, attachment.id, "application/pdf", "page", len(pages), None)
    attachments.add_pages(conn, attachment.id, 1, pages)
    attachments.set_read(conn, attachment.id, "ready", None)
    return attachment.id


def send(conn: Connection, *documents: int, content: str = "", user_id: int = 1) -> int:
    """Add a conversation whose only message has these documents."""
    conversation_id = conversations.add_conversation(conn, user_id, {"title": "t"}).id
    return messages.add_message(conn, user_id, conversation_id, content, attachment_ids=documents)


def found(conn: Connection, query: str, user_id: int = 1) -> set[int]:
    """Return the ids of the messages that are found."""
    return {hit.message_id for hit in search.find(conn, user_id, query, 200) if hit.message_id is not None}


# ---- matches


@pytest.mark.parametrize("filler", ["word ", "字", "é "])
@pytest.mark.parametrize("indexed_whole", [False, True], ids=["", "by an earlier version"])
def test_only_the_beginning_of_a_very_long_message_is_indexed(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, filler: str, indexed_whole: bool
) -> None:
    with monkeypatch.context() as patch:
        if indexed_whole:
            patch.setattr(search, "INDEXED_BYTES", 10**9)
        message_id = say(conn, "beginning " + filler * INDEXED_BYTES + " end", title="long")
    assert found(conn, "beginning") == {message_id}
    assert found(conn, "end") == ({message_id} if indexed_whole else set())
    purge(conn, 1, conn.execute("SELECT id FROM conversations WHERE title = 'long'").fetchone()[0])
    assert found(conn, "beginning") == found(conn, "end") == set()
    assert {say(conn, "the end")} == found(conn, "end")
    conn.execute("INSERT INTO message_words (message_words) VALUES ('integrity-check')")


@pytest.mark.parametrize("marks", ["\u0327\u0301", "\uff9e\u0327", "\u3099\uff9e\u0301"])
def test_thousands_of_combining_marks_are_shortened(conn: Connection, marks: str) -> None:
    text = f"cafe{marks * 10_000} 日本{marks * 10_000} end"
    message_id = say(conn, text, title="marks")
    assert len(search.words(text)) < 200, "the time is quadratic in their number"
    assert len(search.words("\ufdfa" * 100_000)) <= 100_000
    assert found(conn, "cafe") == found(conn, "日本") == found(conn, "end") == {message_id}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("The capital of Japan is Tokyo.", "CAPITAL japan"),
        ("The capital of Japan is Tokyo.", "cap jap tok"),
        ("The capital of Japan is Tokyo.", '"of japan" capital'),
        ("The capital of Japan is Tokyo.", '"capital of'),
        ("un café crème", "cafe creme"),
        ("un cafe creme", "café"),
        ("ПРИВЕТ мир", "привет"),
        ("Ελλάδα", "ελλαδα"),
        ("ελλαδα", "Ελλάδα"),
        ("Tiếng Việt", "tieng viet"),
        ("ещё", "еще"),
        ("x = foo_bar(1)", "foo_bar"),
        ("see https://example.org/a-b?c=d", "example.org"),
        ("snake-case and C++", "c++"),
        ("it's fine", "it's"),
        ("日本の首都は東京です", "首都は東京"),
        ("我想学习中文", "学习"),
        ("한국어를 공부합니다", "공부"),
        ("カタカナとひらがな", "カタカナ"),
        ("東京 and Tokyo", "東京 tok"),
        ("fullwidth ＡＢＣ", "abc"),
        ("a lone 字 here", "字"),
        ("\U00020000\U00020001\U00020002", "\U00020001\U00020002"),
    ],
)
def test_query_finds_text(conn: Connection, text: str, query: str) -> None:
    message_id = say(conn, text)
    say(conn, "something else altogether")
    assert found(conn, query) == {message_id}
    written = document(conn, "a.pdf", ["something else", text])
    with_document = send(conn, written)
    assert found(conn, query) == {message_id, with_document}
    assert [page.number for page in search.find_pages(conn, written, query)] == [2]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("The capital of Japan", "capital korea"),
        ("The capital of Japan", "apital"),
        ("The capital of Japan", '"japan capital"'),
        ("The capital of Japan", '"the capital of jap"'),
        ("東京", "京都"),
        ("東 京", "東京"),
        ("日本の首都は東京です", "東日"),
        ("one two", "one OR three"),
        ("one two", "one NOT two three"),
        ("one two", "owner:u1"),
        *((f"text {query} text", query) for query in ("", '""', "+-()", "…", '" "', "\u3000")),
    ],
)
def test_query_does_not_find_text(conn: Connection, text: str, query: str) -> None:
    say(conn, text)
    written = document(conn, "a.pdf", [text, *text.split()])
    send(conn, written)
    assert search.find(conn, 1, query, 50) == []
    assert search.find_pages(conn, written, query) == []


def test_documents_are_found_in_every_message_that_has_them_newest_first(conn: Connection) -> None:
    report = document(conn, "report.pdf", ["Contents", "The keel is oak.", "A keel, a mast", "Keel " * 20_000])
    other = document(conn, "other.pdf", ["keelson", "no"])
    first = send(conn, report, other, content="An old keel")
    conversation_id = conn.execute("SELECT conversation_id FROM messages WHERE id = ?", (first,)).fetchone()[0]
    version = messages.add_message(conn, 1, conversation_id, "Again", None, attachment_ids=[report])
    newest = send(conn, report)
    conn.execute("UPDATE message_attachments SET name = 'draft.pdf' WHERE message_id = ?", (newest,))

    hits = search.find(conn, 1, "keel", 50)
    places = [(hit.message_id, hit.attachment_id or None, hit.name or None, hit.page or None) for hit in hits]
    assert places == [
        (newest, report, "draft.pdf", 2),
        (version, report, "report.pdf", 2),
        (first, None, None, None),
        (first, report, "report.pdf", 2),
        (first, other, "other.pdf", 1),  # only the beginning of a word, so it comes after the others
    ]
    assert (hits[0].unit, hits[0].role, hits[0].snippet) == ("page", "user", f"The {MARK}keel{UNMARK} is oak.")
    for limit in (1, 2, 3):
        parts = [hit for offset in range(0, 6, limit) for hit in search.find(conn, 1, "keel", limit, offset)]
        assert parts == hits, "the pages of a search join"
    assert [page.number for page in search.find_pages(conn, report, "KEEL")] == [2, 3, 4]
    assert search.find_pages(conn, report, "keel mast")[0].snippet == f"A {MARK}keel{UNMARK}, a {MARK}mast{UNMARK}"
    assert search.find_pages(conn, report, "oak mast") == [], "the words must be on one page"


def test_documents_of_others_in_the_bin_and_not_sent_are_not_found(conn: Connection) -> None:
    secret, unsent, binned = (document(conn, f"{name}.pdf", ["keel"]) for name in ("secret", "unsent", "binned"))
    kept = document(conn, "secret.pdf", ["keel"], user_id=2)
    mine, theirs, deleted = send(conn, secret), send(conn, kept, user_id=2), send(conn, binned)
    conversation_id = conn.execute("SELECT conversation_id FROM messages WHERE id = ?", (deleted,)).fetchone()[0]
    conversations.delete_conversation(conn, 1, conversation_id)
    assert (found(conn, "keel"), found(conn, "keel", user_id=2)) == ({mine}, {theirs})
    assert found(conn, "unsent") == set() and search.find_pages(conn, unsent, "keel") != []
    conversations.hide_conversation(conn, 1, conversation_id)
    assert found(conn, "keel") == {mine}


@examples(max_examples=60)
@given(typed)
def test_no_query_is_an_error(conn: Connection, query: str) -> None:
    with rolled_back(conn):
        say(conn, query or "x", title=query[:200] or "t")
        search.find(conn, 1, query, 50)


@examples(max_examples=40)
@given(st.lists(word, min_size=1, max_size=8), st.data())
def test_every_beginning_of_a_word_finds_it(conn: Connection, words: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=4))
    query = " ".join(one[: data.draw(st.integers(1, len(one)))] for one in asked)
    with rolled_back(conn):
        message_id = say(conn, " ".join(words))
        assert found(conn, query) == {message_id}
        assert found(conn, f'"{" ".join(words)}"') == {message_id}


@examples(max_examples=30)
@given(st.text("東京首都日本語学校中文漢字가나다라ひらカナ", min_size=2, max_size=20), st.data())
def test_two_adjacent_cjk_characters_find_a_text(conn: Connection, text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 2))
    piece = text[start : data.draw(st.integers(start + 2, len(text)))]
    with rolled_back(conn):
        message_id = say(conn, f"before {text} after")
        assert found(conn, piece) == {message_id}


def test_titles_are_found_and_come_first(conn: Connection) -> None:
    message_id = say(conn, "Where is Kyoto?", title="Travel")
    say(conn, "nothing", title="Kyoto in autumn")
    first, second = search.find(conn, 1, "kyoto", 50)
    assert (first.message_id, first.role, first.title) == (None, None, "Kyoto in autumn")
    assert (second.message_id, second.role, second.title) == (message_id, "user", "Travel")
    assert search.find(conn, 1, "kyoto", 1) == [first]


def test_whole_words_are_found_before_beginnings_of_words(conn: Connection) -> None:
    whole = [say(conn, "the end", title="a") for _ in range(3)]
    beginning = say(conn, "there is a walrus", title="Theory")
    title, *hits = [hit.message_id for hit in search.find(conn, 1, "the", 4)]
    assert title is None and hits == whole[::-1], "newest first"
    assert found(conn, "the") == {*whole, beginning}
    everything = search.find(conn, 1, "the", 50)
    paged = [hit for offset in range(0, 6, 2) for hit in search.find(conn, 1, "the", 2, offset)]
    assert paged == everything and everything[-1].message_id == beginning
    assert found(conn, "wa the") == {beginning}


def test_messages_are_sorted_by_their_time_and_not_by_their_import(conn: Connection) -> None:
    message_id = say(conn, "a zebra")
    imported = conversations.add_conversation(conn, 1, {"title": "t"}).id
    for number in range(450):
        add(conn, imported, "a zebra", f"2024-01-01T00:00:00.{number:06}")
    first, second, *_ = search.find(conn, 1, "zebra", 50)
    assert first.message_id == message_id and second.created_at == "2024-01-01T00:00:00.000449"


def test_messages_in_the_bin_are_no_candidates(conn: Connection) -> None:
    message_id = say(conn, "a zebra")
    in_bin = conversations.add_conversation(conn, 1, {"title": "zebras"}).id
    for _ in range(search.MAX_CANDIDATES + 50):
        add(conn, in_bin, "a zebra", db.now())
    conversations.delete_conversation(conn, 1, in_bin)
    assert found(conn, "zebra") == {message_id}


def test_messages_and_titles_of_other_users_are_not_found(conn: Connection) -> None:
    mine, other = say(conn, "our secret"), say(conn, "our secret", title="secret", user_id=2)
    assert found(conn, "secret") == {mine} and found(conn, "secret", 2) == {other}
    for query in ("u2", "u2 secret", "owner u2", '"u2" OR secret', "owner : u2"):
        assert other not in found(conn, query)
        assert all(hit.title != "secret" for hit in search.find(conn, 1, query, 50))


# ---- snippets


def snippet(text: str, query: str) -> str:
    """Return the snippet of a message, with brackets around each match."""
    shown = search.snippet(search.plain(text), search.patterns(query))
    return shown.replace(MARK, "[").replace(UNMARK, "]")


@given(anything, typed)
def test_snippet_is_a_short_line_of_the_text(text: str, query: str) -> None:
    shown = search.snippet(text, search.patterns(query))
    assert shown.count(MARK) == shown.count(UNMARK)
    bare = shown.replace(MARK, "").replace(UNMARK, "")
    assert len(bare) <= SNIPPET_CHARACTERS + 2 and "\n" not in bare
    whole = " ".join(text.replace(MARK, "").replace(UNMARK, "").split())
    assert bare.strip("…").strip() in whole or "…" in text


@pytest.mark.parametrize(
    ("text", "query", "shown"),
    [
        ("The capital of Japan", "JAPAN", "The capital of [Japan]"),
        ("The **capital** of `Japan`", "cap jap", "The [cap]ital of [Jap]an"),
        ("The capital\n\nof Japan", '"capital of"', "The [capital of] Japan"),
        ("Un café", "cafe", "Un [café]"),
        ("日本の首都は東京です", "東京", "日本の首都は[東京]です"),
        ("这是**重点**内容", "重点", "这是[重点]内容"),
        ("a b", "c", "a b"),
        ("straße", "strasse", "[straße]"),
        ("recap of a cap", "cap", "recap of a [cap]"),
        (f"{MARK}false{UNMARK} true", "true", "false [true]"),
        (
            "# Title\n\n> ## quoted\n> text\n\n```python\nprint(1)\n```\n",
            "python",
            "Title quoted text [python] print(1)",
        ),
        ("***both*** and **a *b* c**, *x*.", "b x", "[b]oth and a [b] c, [x]."),
        ("| a | b |\n|:--|--:|\n| 1 | 2 |\n\n---\n- item", "item", "| a | b | | 1 | 2 | - [item]"),
        ("2**3 * 4**5, a*b*c, *args, #1, a > b", "3 b", "2**[3] * 4**5, a*[b]*c, *args, #1, a > [b]"),
        ("snake_case and __init__", "snake", "[snake]_case and __init__"),
        ("before " * 500 + "needle " + "after " * 500, "needle", f"…{'before ' * 5}[needle] {'after ' * 19}afte…"),
    ],
)
def test_snippet_marks_the_matches_in_plain_text(text: str, query: str, shown: str) -> None:
    assert snippet(text, query) == shown


@given(st.lists(st.one_of(word, st.sampled_from("*`#>|-:~ \n\t")), max_size=60).map("".join))
def test_plain_text_keeps_every_word_in_order(markdown: str) -> None:
    markup = re.compile(r"[*`#>|:~\s-]")
    assert markup.sub("", search.plain(markdown)) == markup.sub("", markdown)


@pytest.mark.parametrize("text", ["**a" * 17_000, "字" * 50_000, "\ufdfa " * 25_000])
def test_snippets_of_a_search_take_little_time(text: str) -> None:
    started = time.thread_time()
    for query in ("a " * 500, " ".join(f'"{"a " * number}b"' for number in range(1, 17)), f'"{"字" * 900}b"'):
        search._add_snippets([search.Hit(1, 1, "t", "user", text, "") for _ in range(200)], query)
    assert time.thread_time() - started < 5


def test_snippets_of_many_long_texts_are_their_beginnings(conn: Connection) -> None:
    text = "word " * 9_000 + "needle"
    for _ in range(10):
        say(conn, text)
    snippets = [hit.snippet for hit in search.find(conn, 1, "needle", 50)]
    scanned = search.SEARCH_SCAN // len(text)
    assert [f"{MARK}needle{UNMARK}" in snippet for snippet in snippets] == [True] * scanned + [False] * (10 - scanned)
    assert snippets[-1] == "word " * 32 + "…"


@examples(max_examples=40)
@given(st.lists(word, min_size=1, max_size=30), st.data())
def test_snippet_marks_each_word_that_is_found(words: list[str], data: st.DataObject) -> None:
    query = data.draw(st.sampled_from(words))
    marked = re.findall(f"{MARK}(.*?){UNMARK}", search.snippet(" ".join(words), search.patterns(query)))
    assert marked and all(fold(piece) == fold(query) for piece in marked)


def fold(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


# ---- over HTTP


async def test_search_finds_questions_answers_and_other_versions(ann: Person, bob: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Who wrote Faust?", title="Literature")
    for text in ("**Goethe** wrote Faust.", "Marlowe wrote Faustus."):
        upstream.enqueue(answer(text))
        body = {"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
        good(await ann.post("/chat/retry", json=body))
        await ann.answer(conversation_id)
    results = good(await ann.get("/search", params={"q": "goethe"}))["results"]
    question, _ = await ann.messages(conversation_id)
    [hit] = results
    assert set(hit) == {"conversation_id", "message_id", "title", "role", "snippet", "created_at"}
    assert (hit["conversation_id"], hit["title"], hit["role"]) == (conversation_id, "Literature", "assistant")
    assert hit["snippet"] == f"{MARK}Goethe{UNMARK} wrote Faust."
    assert len(good(await ann.get("/search", params={"q": "faust"}))["results"]) == 3
    assert good(await bob.get("/search", params={"q": "faust"})) == {"results": [], "more": False}
    good(await ann.delete(f"/conversations/{conversation_id}"))
    assert good(await ann.get("/search", params={"q": "faust"})) == {"results": [], "more": False}
    good(await ann.post(f"/conversations/{conversation_id}/restore"))
    hits = good(await ann.get("/search", params={"q": "who"}))["results"]
    assert [hit["message_id"] for hit in hits] == [question["id"]]


async def add_long_messages(running: Running, user_id: int) -> None:
    """Add 200 messages of one word, in which SQLite takes about 20 s to find a long phrase."""

    def add(conn: Connection) -> None:
        for _ in range(200):
            say(conn, "a " * 26_000, user_id=user_id)

    await running.state.database.write(add)


LONG_PHRASE = {"q": '"' + "a " * 498 + '"'}


async def test_slow_search_ends_and_does_not_delay_others(
    running: Running, ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "SEARCH_SECONDS", 0.5)
    await add_long_messages(running, 1)
    await add_long_messages(running, 2)
    carl = await running.join(ann, "carl")
    slow = [asyncio.create_task(person.get("/search", params=LONG_PHRASE)) for person in (ann, bob, ann)]
    waits = []
    while not all(request.done() for request in slow):
        started = time.monotonic()
        good(await carl.get("/conversations?limit=60"))
        waits.append(time.monotonic() - started)
    assert [code(request.result()) for request in slow] == [(503, "QUERY_TIMEOUT")] * 3
    assert max(waits) < 1


async def test_search_ends_when_its_client_disconnects(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "SEARCH_SECONDS", 10 * PATIENCE)
    await add_long_messages(running, 1)
    left = [asyncio.create_task(ann.get("/search", params=LONG_PHRASE)) for _ in range(3)]
    await until(lambda: max(running.state.database._load.values()) >= db.SLOW_READ_LOAD)
    for request in left:
        request.cancel()
    assert good(await ann.get("/search", params={"q": "zebra"})) == {"results": [], "more": False}


async def test_list_without_limit_is_complete_and_in_order(running: Running, ann: Person) -> None:
    def add(conn: Connection) -> list[int]:
        return [conversations.add_conversation(conn, 1, {"title": f"One of {number}"}).id for number in range(250)]

    ids = (await running.state.database.write(add))[::-1]
    for query in ("", "?q=one", "?limit=1000", "?q=one&limit=1000"):
        assert [listed["id"] for listed in good(await ann.get(f"/conversations{query}"))] == ids


async def test_search_accepts_any_text_of_1000_characters(ann: Person) -> None:
    for query in ('"', "NEAR(", "%", "\ud7a3", "𝔘", "x" * 1000, "a " * 499):
        assert "results" in good(await ann.get("/search", params={"q": query}))
    for query in ("\0", "x" * 1001):
        assert code(await ann.get("/search", params={"q": query})) == (400, "VALIDATION_ERROR")
    for limit in ("0", "201", "x", "-1", ""):
        assert code(await ann.get("/search", params={"q": "a", "limit": limit})) == (400, "VALIDATION_ERROR")
