"""Full-text search: the words in the index, the matches of a query, and their snippets.

Chinese, Japanese and Korean are indexed in overlapping pairs of characters: they have no spaces between words, and FTS5's trigram
tokenizer finds nothing for two characters.
"""

import re
import sqlite3
import unicodedata

from msgspec import UNSET, Struct, UnsetType

from .types import Unit

MARK, UNMARK = "\ue000", "\ue001"  # around each match in a snippet; private-use characters need no escaping

INDEXED_BYTES = 200_000  # of a message in UTF-8: 2,000,000 characters keep other writes waiting for half a second
MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe text format (UAX #15)
LONGEST_LIGATURE, MAX_LIGATURES = "\ufdfa", 1000  # it becomes 18 characters; all others become at most 8
MAX_TERMS = 16  # further ones are ignored
MAX_CANDIDATES = 500  # of more matches, those with the highest ids are sorted by time
MAX_PAGES = 5_000  # of documents that match; of more, those with the highest ids count
MAX_FOUND_PAGES = 200  # of a search in one document
SNIPPET_CHARACTERS = 160
# Characters in which snippets look for matches: of one text, of all texts of a search, and of each text after those are used up.
TEXT_SCAN, SEARCH_SCAN, SHORT_SCAN = 50_000, 200_000, 4 * SNIPPET_CHARACTERS
MARKED_CHARACTERS, MARKED_WORDS = 40, 5  # of a term, that a match in a snippet must have

_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ACCENTED = re.compile(
    f"[^\0-\x7f{_CJK.pattern[1:-2]}]+"
)  # FTS5 removes every accent that is a character of its own, but few others
# Markdown's rules, quotes, headings, fences and code marks. Removing them never removes a word.
_SIGNS = re.compile(r"^[ \t]*[-|:][-|: \t]*$|^(?:[ \t]*>)*[ \t]*(?:#{1,6}(?=[ \t])|~{3,})?|`+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![a-zA-Z0-9*])(\*{1,3})(?=\S)([^*\n]*[^*\s])\1(?![a-zA-Z0-9*])")
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')
# All characters whose normalized form begins with a combining mark, and signs and emoji, which are no words either.
_MARKS = re.compile(rf"(?:[^\w\s\0-\x7f]|[\uff9e\uff9f]){{{MAX_MARKS + 1},}}")


class Hit(Struct):
    """A message, a title (`message_id` and `role` are None), or the first page that matches of a document that a message has."""

    conversation_id: int
    message_id: int | None
    title: str
    role: str | None
    snippet: str
    created_at: str
    attachment_id: int | UnsetType = UNSET
    name: str | UnsetType = UNSET  # of the document
    unit: Unit | UnsetType = UNSET
    page: int | UnsetType = UNSET


class FoundPage(Struct):
    """A page of a document that matches."""

    number: int
    snippet: str


_TITLES = """
SELECT c.id AS conversation_id, NULL AS message_id, c.title, NULL AS role, c.title AS snippet, c.updated_at AS created_at
FROM title_words w CROSS JOIN conversations c ON c.id = w.rowid
WHERE w.title_words MATCH :match AND c.deleted_at IS NULL AND c.hidden = 0 AND c.temporary = 0 ORDER BY w.rowid DESC LIMIT :candidates
"""
_MESSAGE = f"""
SELECT c.id AS conversation_id, m.id AS message_id, c.title, m.role, substr(m.content, 1, {TEXT_SCAN}) AS snippet, m.created_at
FROM messages m CROSS JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?
"""
_PAGE = f"""
SELECT c.id AS conversation_id, m.id AS message_id, c.title, m.role, substr(p.text, 1, {TEXT_SCAN}) AS snippet, m.created_at,
    a.id AS attachment_id, l.name, a.unit, p.number AS page
FROM messages m CROSS JOIN conversations c ON c.id = m.conversation_id
CROSS JOIN message_attachments l ON l.message_id = m.id CROSS JOIN attachments a ON a.id = l.attachment_id
CROSS JOIN attachment_pages p ON p.attachment_id = a.id WHERE m.id = ? AND a.id = ? AND p.number = ? LIMIT 1
"""
# Of the matching messages, and of those that have a document with a matching page: id, attachment_id, page and created_at.
_VISIBLE = "c.deleted_at IS NULL AND c.hidden = 0 AND c.temporary = 0"
_MATCHES = f"""
SELECT id, attachment_id, page FROM (
    SELECT id, created_at, NULL AS attachment_id, NULL AS page FROM (
        SELECT m.id, m.created_at FROM message_words w
        CROSS JOIN messages m ON m.id = w.rowid CROSS JOIN conversations c ON c.id = m.conversation_id
        WHERE w.message_words MATCH :match AND {_VISIBLE} ORDER BY w.rowid DESC LIMIT :candidates)
    UNION ALL
    SELECT id, created_at, attachment_id, page FROM (
        SELECT m.id, m.created_at, d.attachment_id, d.page FROM (
            SELECT p.attachment_id, min(p.number) AS page FROM (
                SELECT rowid FROM page_words WHERE page_words MATCH :match ORDER BY rowid DESC LIMIT {MAX_PAGES}) w
            CROSS JOIN attachment_pages p ON p.id = w.rowid GROUP BY p.attachment_id) d
        CROSS JOIN message_attachments l ON l.attachment_id = d.attachment_id
        CROSS JOIN messages m ON m.id = l.message_id CROSS JOIN conversations c ON c.id = m.conversation_id
        WHERE {_VISIBLE} ORDER BY m.id DESC LIMIT :candidates)
) ORDER BY created_at DESC, id DESC, attachment_id LIMIT :limit
"""


def find(conn: sqlite3.Connection, user_id: int, query: str, limit: int, offset: int = 0) -> list[Hit]:
    """Return titles, then messages and documents of messages, that contain every term of the query, newest first.

    A term is the beginning of a word. All terms must be on one page of a document.

    Messages with the terms as whole words come first, and the others are only looked up if there are too few: FTS5 reads all postings
    of a prefix before the first match, 0.6 s for "t" among a million messages. An index of prefixes is no replacement
    (docs/decisions/0005-search.md). So the order does not depend on `offset` and `limit`.
    """
    asked = terms(query)
    if not asked:
        return []
    whole, prefixes = (f'owner : "u{user_id}" AND text : ({_all_of(asked, mark)})' for mark in ("", "*"))
    titles = conn.execute(_TITLES, {"match": prefixes, "candidates": MAX_CANDIDATES})
    found = sorted((Hit(**row) for row in titles), key=lambda hit: hit.created_at, reverse=True)
    hits, skipped, end = found[offset : offset + limit], len(found), offset + limit
    places: dict[tuple[int, int | None], int | None] = {}  # the first page that matches, by message and document
    for match in dict.fromkeys((whole, prefixes)):
        if skipped + len(places) < end:
            values = {"match": match, "candidates": MAX_CANDIDATES, "limit": end - skipped}
            for row in conn.execute(_MATCHES, values):
                places.setdefault((row["id"], row["attachment_id"]), row["page"])
    chosen = list(places.items())[max(0, offset - skipped) : max(0, end - skipped)]
    for (message_id, attachment_id), page in chosen:
        select, of = (_MESSAGE, (message_id,)) if page is None else (_PAGE, (message_id, attachment_id, page))
        hits += [Hit(**row) for row in conn.execute(select, of)]
    _add_snippets(hits, query)
    return hits


def _add_snippets(hits: list[Hit], query: str) -> None:
    """Turn the text of each hit into its snippet. SEARCH_SCAN bounds the time."""
    marked, left = patterns(query), SEARCH_SCAN
    for hit in hits:
        text = hit.snippet[: max(SHORT_SCAN, left)]
        left -= len(text)
        is_markdown = hit.message_id is not None and hit.attachment_id is UNSET
        hit.snippet = snippet(plain(text) if is_markdown else text, marked)


def find_pages(conn: sqlite3.Connection, attachment_id: int, query: str) -> list[FoundPage]:
    """Return the first MAX_FOUND_PAGES pages of a document that contain every term of the query. The caller has checked its owner."""
    asked = terms(query)
    if not asked:
        return []
    match = f'owner : "a{attachment_id}" AND text : ({_all_of(asked, "*")})'
    rows = conn.execute(
        f"SELECT p.number, substr(p.text, 1, {TEXT_SCAN}) AS text FROM page_words w CROSS JOIN attachment_pages p ON p.id = w.rowid"
        " WHERE w.page_words MATCH ? AND p.attachment_id = ? ORDER BY p.number LIMIT ?",
        (match, attachment_id, MAX_FOUND_PAGES),
    )
    marked = patterns(query)
    return [FoundPage(row["number"], snippet(row["text"], marked)) for row in rows]


def _all_of(asked: list[tuple[str, bool]], mark: str) -> str:
    """Return an FTS5 query for all terms. `mark` follows each that is not a phrase: "*" for a prefix."""
    return " AND ".join(term if phrase else term + mark for term, phrase in asked)


def index_message(conn: sqlite3.Connection, user_id: int, message_id: int, content: str) -> None:
    if content:
        _index(conn, "message_words", message_id, f"u{user_id}", words(_beginning(content)))


def unindex_message(conn: sqlite3.Connection, user_id: int, message: sqlite3.Row) -> None:
    """Earlier versions indexed more of long messages. Entries of their rest stay, and find nothing when the message is deleted."""
    if message["content"]:
        _unindex(conn, "message_words", message["id"], f"u{user_id}", words(_beginning(message["content"])))


def _beginning(content: str) -> str:
    return content.encode()[:INDEXED_BYTES].decode(errors="ignore")


def index_title(conn: sqlite3.Connection, user_id: int, conversation_id: int, title: str) -> None:
    _index(conn, "title_words", conversation_id, f"u{user_id}", words(title))


def unindex_title(conn: sqlite3.Connection, conversation: sqlite3.Row) -> None:
    _unindex(conn, "title_words", conversation["id"], f"u{conversation['user_id']}", words(conversation["title"]))


def index_page(conn: sqlite3.Connection, user_id: int, attachment_id: int, page_id: int, text: str) -> None:
    _index(conn, "page_words", page_id, f"u{user_id} a{attachment_id}", words(text))


def unindex_page(conn: sqlite3.Connection, page: sqlite3.Row) -> None:
    _unindex(conn, "page_words", page["id"], f"u{page['user_id']} a{page['attachment_id']}", words(page["text"]))


def _index(conn: sqlite3.Connection, table: str, row_id: int, owner: str, text: str) -> None:
    conn.execute(f"INSERT INTO {table} (rowid, owner, text) VALUES (?, ?, ?)", (row_id, owner, text))


def _unindex(conn: sqlite3.Connection, table: str, row_id: int, owner: str, text: str) -> None:
    """Remove a row. FTS5 needs the text that was indexed, because it does not store it."""
    sql = f"INSERT INTO {table} ({table}, rowid, owner, text) VALUES ('delete', ?, ?, ?)"
    conn.execute(sql, (row_id, owner, text))


def words(text: str) -> str:
    """Return the text as it is indexed. It must not change: removing a row from the index needs the indexed text again."""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", safe_to_normalize(text))
    text = _CJK.sub(lambda run: f" {_pairs(run[0])} ", text)
    return _ACCENTED.sub(lambda run: unicodedata.normalize("NFD", run[0]), text)


def safe_to_normalize(text: str) -> str:
    """Shorten rows of combining marks, and remove the longest ligature if there are many.

    unicodedata.normalize holds the GIL, and its time is quadratic in the number of combining marks in a row.
    """
    if text.count(LONGEST_LIGATURE) > MAX_LIGATURES:
        text = text.replace(LONGEST_LIGATURE, " ")
    return _MARKS.sub(lambda run: run[0][:MAX_MARKS], text)


def _pairs(run: str) -> str:
    return " ".join(run[i : i + 2] for i in range(max(1, len(run) - 1)))


def terms(query: str) -> list[tuple[str, bool]]:
    """Return the distinct terms of a query as FTS5 strings, each with whether it is a "quoted" phrase, which is not a prefix."""
    found: dict[tuple[str, bool], None] = {}
    for phrase, word in _TERM.findall(query):
        text = words(phrase or word)
        if any(character.isalnum() for character in text):
            found['"' + text.replace('"', " ").strip() + '"', bool(phrase)] = None
    return list(found)[:MAX_TERMS]


def plain(markdown: str) -> str:
    """Return the text without Markdown's markup."""
    text = _SIGNS.sub("", markdown)
    for _ in range(2):  # bold within italic, or the reverse
        text = _EMPHASIS.sub(r"\2", text)
    return text


def snippet(text: str, patterns: list[re.Pattern[str]]) -> str:
    """Return about SNIPPET_CHARACTERS of the text on one line, around the first match. Each match is between MARK and UNMARK."""
    text = text.replace(MARK, "").replace(UNMARK, "")
    folded, origin = _fold(text)
    matches = [match for pattern in patterns if (match := pattern.search(folded))]
    first = min((match.start() for match in matches), default=0)
    start = max(0, origin[first] - SNIPPET_CHARACTERS // 4) if matches else 0
    if start:
        space = text.find(" ", start, origin[first])
        start = space + 1 if space >= 0 else start
    end = min(len(text), start + SNIPPET_CHARACTERS)
    spans = []
    for match in matches:
        for found in match.re.finditer(folded, match.start()):
            low, high = origin[found.start()], origin[found.end() - 1] + 1
            if high > end:
                break
            spans.append((low, high))
    pieces, at = ["…" if start else ""], start
    for low, high in sorted(spans):
        if low >= at:
            pieces += [text[at:low], MARK, text[low:high], UNMARK]
            at = high
    pieces += [text[at:end], "…" if end < len(text) else ""]
    return " ".join("".join(pieces).split())


def patterns(query: str) -> list[re.Pattern[str]]:
    """Return patterns that find the terms of a query in a folded text, in time that is linear in the text.

    For that they are short, and their repetition is possessive.
    """
    found: dict[str, None] = {}
    for phrase, word in _TERM.findall(query):
        folded = _fold(phrase or word)[0]
        pieces = re.findall(r"\w+", folded[:MARKED_CHARACTERS])[:MARKED_WORDS]
        if pieces:
            start = "" if _CJK.match(pieces[0]) else r"(?<!\w)"
            whole = phrase and len(folded) <= MARKED_CHARACTERS and len(pieces) < MARKED_WORDS
            end = r"(?!\w)" if whole and not _CJK.search(pieces[-1]) else ""
            found[start + r"\W++".join(map(re.escape, pieces)) + end] = None
    return [re.compile(pattern) for pattern in list(found)[:MAX_TERMS]]


def _fold(text: str) -> tuple[str, range | list[int]]:
    """Return the text without case and accents, as the index compares it, and for each character its position in `text`."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded, origin = [], []
    for position, character in enumerate(text):
        decomposed = unicodedata.normalize("NFKD", character).casefold()[:4]  # of the 18 characters of U+FDFA
        for part in character if _CJK.match(character) else decomposed:  # Korean syllables are indexed whole
            if not unicodedata.combining(part):
                folded.append(part)
                origin.append(position)
    return "".join(folded), origin
