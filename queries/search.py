"""Full-text search: the words of a text in the index, the matches of a query, and their snippets.

Chinese, Japanese and Korean are indexed in overlapping pairs of characters, since they do not put spaces between words and
FTS5's own trigram tokenizer finds nothing for two characters.
"""

import re
import sqlite3
import unicodedata

from msgspec import Struct

MARK, UNMARK = "\ue000", "\ue001"  # around each match in a snippet; private-use characters, so no escaping is needed

MAX_TERMS = 16  # further ones are ignored
CANDIDATES = 500  # of more matches than these, the ones that came into the database last are looked at
MANY = 50_000  # messages
SNIPPET = 160  # characters
# Characters in which the matches for snippets are looked for: of one text, and of all texts of a search. Of the texts that
# are left when these are used up, only the beginning is looked at.
TEXT_SCAN, SEARCH_SCAN, BEGINNING = 50_000, 200_000, 4 * SNIPPET
MARKED_CHARACTERS, MARKED_WORDS = 40, 5  # of a term, that a match in a snippet must have

_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ACCENTED = re.compile(f"[^\0-\x7f{_CJK.pattern[1:-2]}]+")  # FTS5 drops every accent that is apart, and few others
# Of Markdown: rules and those of tables; quotes, headings and fences; code. Only signs go, never a word that may be what was found.
_SIGNS = re.compile(r"^[ \t]*[-|:][-|: \t]*$|^(?:[ \t]*>)*[ \t]*(?:#{1,6}(?=[ \t])|~{3,})?|`+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![a-zA-Z0-9*])(\*{1,3})(?=\S)([^*\n]*[^*\s])\1(?![a-zA-Z0-9*])")
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')


class Hit(Struct):
    """A title (`message_id` and `role` are None) or a message."""

    conversation_id: int
    message_id: int | None
    title: str
    role: str | None
    snippet: str
    created_at: str


def find(conn: sqlite3.Connection, user_id: int, query: str, limit: int) -> list[Hit]:
    """Titles, then messages, in which every word of the query occurs, the newest first.

    FTS5 reads all words with a prefix before the first match: among a million messages a second for "t", a tenth for "the".
    So among many messages a word that is short or frequent is matched whole, and as a prefix only if that finds too few.
    """
    asked = terms(query)
    if not asked:
        return []
    whole = {term for term, phrase in asked if phrase}
    costly = {term for term, _ in asked if _is_costly(conn, user_id, term)} - whole
    hits = _hits(conn, user_id, asked, whole | costly, limit)
    if costly and len(hits) < limit:
        hits = _hits(conn, user_id, asked, whole, limit)
    _add_snippets(hits, query)
    return hits


def _add_snippets(hits: list[Hit], query: str) -> None:
    """Turn the text of each hit into its snippet. The time is limited for every text and query."""
    marked, left = patterns(query), SEARCH_SCAN
    for hit in hits:
        text = hit.snippet[: max(BEGINNING, left)]
        left -= len(text)
        hit.snippet = snippet(text if hit.message_id is None else plain(text), marked)


def _is_costly(conn: sqlite3.Connection, user_id: int, term: str) -> bool:
    """Whether all that begins like this may be too much to read."""
    if (conn.execute("SELECT max(id) FROM messages").fetchone()[0] or 0) <= MANY:
        return False
    if len(term) <= len('"ab"'):
        return True
    often = "SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ? LIMIT 400)"
    return bool(conn.execute(often, (_match(user_id, term),)).fetchone()[0] == 400)


def _match(user_id: int, text: str) -> str:
    return f'owner : "u{user_id}" AND text : ({text})'


def _hits(
    conn: sqlite3.Connection, user_id: int, asked: list[tuple[str, bool]], whole: set[str], limit: int
) -> list[Hit]:
    """The matches, with the beginning of the text where the snippet will be."""
    match = _match(user_id, " AND ".join(term if term in whole else f"{term}*" for term, _ in asked))
    titles = (
        "SELECT c.id, NULL, c.title, NULL, c.title, c.updated_at"
        " FROM title_words w CROSS JOIN conversations c ON c.id = w.rowid"
        " WHERE w.title_words MATCH ? AND c.deleted_at IS NULL AND c.hidden = 0 ORDER BY w.rowid DESC LIMIT ?"
    )
    newest = (
        "SELECT m.id, m.created_at"
        " FROM message_words w CROSS JOIN messages m ON m.id = w.rowid CROSS JOIN conversations c ON c.id = m.conversation_id"
        " WHERE w.message_words MATCH ? AND c.deleted_at IS NULL AND c.hidden = 0 ORDER BY w.rowid DESC LIMIT ?"
    )
    texts = (
        f"SELECT c.id, m.id, c.title, m.role, substr(m.content, 1, {TEXT_SCAN}), m.created_at"
        f" FROM (SELECT id FROM ({newest}) ORDER BY created_at DESC, id DESC LIMIT ?) f"
        " CROSS JOIN messages m ON m.id = f.id CROSS JOIN conversations c ON c.id = m.conversation_id"
    )
    rows = sorted(conn.execute(titles, (match, CANDIDATES)), key=lambda row: row[5], reverse=True)[:limit]
    if len(rows) < limit:
        rows += conn.execute(texts, (match, CANDIDATES, limit - len(rows))).fetchall()
    return [Hit(*row) for row in rows]


def index_message(conn: sqlite3.Connection, user_id: int, message_id: int, content: str) -> None:
    if content:
        conn.execute(
            "INSERT INTO message_words (rowid, owner, text) VALUES (?, ?, ?)",
            (message_id, f"u{user_id}", words(content)),
        )


def unindex_message(conn: sqlite3.Connection, user_id: int, message: sqlite3.Row) -> None:
    if message["content"] and message["status"] != "generating":
        conn.execute(
            "INSERT INTO message_words (message_words, rowid, owner, text) VALUES ('delete', ?, ?, ?)",
            (message["id"], f"u{user_id}", words(message["content"])),
        )


def index_title(conn: sqlite3.Connection, user_id: int, conversation_id: int, title: str) -> None:
    conn.execute(
        "INSERT INTO title_words (rowid, owner, text) VALUES (?, ?, ?)", (conversation_id, f"u{user_id}", words(title))
    )


def unindex_title(conn: sqlite3.Connection, conversation: sqlite3.Row) -> None:
    conn.execute(
        "INSERT INTO title_words (title_words, rowid, owner, text) VALUES ('delete', ?, ?, ?)",
        (conversation["id"], f"u{conversation['user_id']}", words(conversation["title"])),
    )


def words(text: str) -> str:
    """The text as the index holds it. The same text always gives the same words: to unindex a row one must repeat them."""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = _CJK.sub(lambda run: f" {_pairs(run[0])} ", unicodedata.normalize("NFKC", text))
    return _ACCENTED.sub(lambda run: unicodedata.normalize("NFD", run[0]), text)


def _pairs(run: str) -> str:
    return " ".join(run[i : i + 2] for i in range(max(1, len(run) - 1)))


def terms(query: str) -> list[tuple[str, bool]]:
    """The different terms of a query: an FTS5 string, and whether it is a "quoted" phrase, which is no prefix."""
    found: dict[tuple[str, bool], None] = {}
    for phrase, word in _TERM.findall(query):
        text = words(phrase or word)
        if any(character.isalnum() for character in text):
            found['"' + text.replace('"', " ").strip() + '"', bool(phrase)] = None
    return list(found)[:MAX_TERMS]


def plain(markdown: str) -> str:
    """The text without Markdown's signs."""
    text = _SIGNS.sub("", markdown)
    for _ in range(2):  # one within the other
        text = _EMPHASIS.sub(r"\2", text)
    return text


def snippet(text: str, patterns: list[re.Pattern[str]]) -> str:
    """Some 160 characters of the text around its first match, each match between MARK and UNMARK, on one line."""
    text = text.replace(MARK, "").replace(UNMARK, "")
    folded, origin = _fold(text)
    matches = [match for pattern in patterns if (match := pattern.search(folded))]
    first = min((match.start() for match in matches), default=0)
    start = max(0, origin[first] - SNIPPET // 4) if matches else 0
    if start:
        space = text.find(" ", start, origin[first])
        start = space + 1 if space >= 0 else start
    end = min(len(text), start + SNIPPET)
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
    """Patterns that find the terms of a query in a folded text.

    Each is so short, and its repetition possessive, that the time is linear in the text with a small constant.
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
    """The text without case and accents, as the index compares it, and the index in `text` of each of its characters."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded, origin = [], []
    for place, character in enumerate(text):
        whole = _CJK.match(character)  # NFKD would take Korean syllables apart, which are searched whole
        for part in character if whole else unicodedata.normalize("NFKD", character).casefold()[:4]:  # U+FDFA is 18
            if not unicodedata.combining(part):
                folded.append(part)
                origin.append(place)
    return "".join(folded), origin
