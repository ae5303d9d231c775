"""Search: what the indexes hold of a text, what a query finds in them, and the snippet that shows why.

Chinese, Japanese and Korean are indexed in overlapping pairs of characters, since they do not put spaces between words and
FTS5's own trigram tokenizer finds nothing for two characters.
"""

import re
import sqlite3
import unicodedata

from msgspec import Struct

MARK, UNMARK = "\ue000", "\ue001"  # around each match in a snippet; private-use characters, so no escaping is needed

MAX_TERMS = 16
CANDIDATES = 500  # of more matches than these, the ones that came into the database last are looked at
MANY = 50_000  # messages
SNIPPET = 160  # characters
_SCANNED = 50_000  # characters of a text in which its snippet is looked for

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


def find(tx: sqlite3.Connection, user_id: int, query: str, limit: int) -> list[Hit]:
    """Titles, then messages, in which every word of the query occurs, the newest first.

    FTS5 reads all words that begin so before the first match: among a million messages a second for "t", a tenth for "the".
    So among many messages a word that is short or frequent stands for itself, unless that finds too few.
    """
    asked = terms(query)
    if not asked:
        return []
    whole = {term for term, phrase in asked if phrase}
    costly = {term for term, _ in asked if _is_costly(tx, user_id, term)} - whole
    hits = _hits(tx, user_id, asked, whole | costly, query, limit)
    return _hits(tx, user_id, asked, whole, query, limit) if costly and len(hits) < limit else hits


def _is_costly(tx: sqlite3.Connection, user_id: int, term: str) -> bool:
    """Whether all that begins like this may be too much to read."""
    if (tx.execute("SELECT max(id) FROM messages").fetchone()[0] or 0) <= MANY:
        return False
    if len(term) <= len('"ab"'):
        return True
    often = "SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ? LIMIT 400)"
    return bool(tx.execute(often, (_match(user_id, term),)).fetchone()[0] == 400)


def _match(user_id: int, text: str) -> str:
    return f'owner : "u{user_id}" AND text : ({text})'


def _hits(
    tx: sqlite3.Connection, user_id: int, asked: list[tuple[str, bool]], whole: set[str], query: str, limit: int
) -> list[Hit]:
    match = _match(user_id, " AND ".join(term if term in whole else f"{term}*" for term, _ in asked))
    titles = (
        "SELECT c.id, NULL, c.title, NULL, c.title, c.updated_at"
        " FROM title_words w CROSS JOIN conversations c ON c.id = w.rowid"
        " WHERE w.title_words MATCH ? AND c.deleted_at IS NULL ORDER BY w.rowid DESC LIMIT ?"
    )
    newest = (
        "SELECT m.id, m.created_at"
        " FROM message_words w CROSS JOIN messages m ON m.id = w.rowid CROSS JOIN conversations c ON c.id = m.conversation_id"
        " WHERE w.message_words MATCH ? AND c.deleted_at IS NULL ORDER BY w.rowid DESC LIMIT ?"
    )
    texts = (
        "SELECT c.id, m.id, c.title, m.role, m.content, m.created_at"
        f" FROM (SELECT id FROM ({newest}) ORDER BY created_at DESC, id DESC LIMIT ?) f"
        " CROSS JOIN messages m ON m.id = f.id CROSS JOIN conversations c ON c.id = m.conversation_id"
    )
    rows = sorted(tx.execute(titles, (match, CANDIDATES)), key=lambda row: row[5], reverse=True)[:limit]
    if len(rows) < limit:
        rows += tx.execute(texts, (match, CANDIDATES, limit - len(rows))).fetchall()
    return [
        Hit(row[0], row[1], row[2], row[3], snippet(row[4] if row[1] is None else plain(row[4]), query), row[5])
        for row in rows
    ]


def index_message(tx: sqlite3.Connection, user_id: int, message_id: int, content: str) -> None:
    if content:
        tx.execute(
            "INSERT INTO message_words (rowid, owner, text) VALUES (?, ?, ?)",
            (message_id, f"u{user_id}", words(content)),
        )


def unindex_message(tx: sqlite3.Connection, user_id: int, message: sqlite3.Row) -> None:
    if message["content"] and message["status"] != "generating":
        tx.execute(
            "INSERT INTO message_words (message_words, rowid, owner, text) VALUES ('delete', ?, ?, ?)",
            (message["id"], f"u{user_id}", words(message["content"])),
        )


def index_title(tx: sqlite3.Connection, user_id: int, conversation_id: int, title: str, title_key: str) -> None:
    tx.execute(
        "INSERT INTO title_words (rowid, owner, text) VALUES (?, ?, ?)", (conversation_id, f"u{user_id}", words(title))
    )
    tx.execute("INSERT INTO title_letters (rowid, title_key) VALUES (?, ?)", (conversation_id, title_key))


def unindex_title(tx: sqlite3.Connection, conversation: sqlite3.Row) -> None:
    tx.execute(
        "INSERT INTO title_words (title_words, rowid, owner, text) VALUES ('delete', ?, ?, ?)",
        (conversation["id"], f"u{conversation['user_id']}", words(conversation["title"])),
    )
    tx.execute(
        "INSERT INTO title_letters (title_letters, rowid, title_key) VALUES ('delete', ?, ?)",
        (conversation["id"], conversation["title_key"]),
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
    """What must occur, each as a string of FTS5, and whether that is a phrase in "quotes": a word may be the beginning of one."""
    found = []
    for phrase, word in _TERM.findall(query)[:MAX_TERMS]:
        text = words(phrase or word)
        if any(character.isalnum() for character in text):
            found.append(('"' + text.replace('"', " ").strip() + '"', bool(phrase)))
    return found


def plain(markdown: str) -> str:
    """The text that a snippet is of, without the signs that say how it is to look."""
    text = _SIGNS.sub("", markdown[:_SCANNED])
    for _ in range(2):  # one within the other
        text = _EMPHASIS.sub(r"\2", text)
    return text


def snippet(text: str, query: str) -> str:
    """Some 160 characters of the text around its first match, each match between MARK and UNMARK, on one line."""
    text = text[:_SCANNED].replace(MARK, "").replace(UNMARK, "")
    folded, origin = _fold(text)
    found = [match.span() for term in _patterns(query) for match in term.finditer(folded)]
    spans = sorted((origin[start], origin[end - 1] + 1) for start, end in found if end > start)
    start = max(0, spans[0][0] - SNIPPET // 4) if spans else 0
    if start:
        space = text.find(" ", start, spans[0][0])
        start = space + 1 if space >= 0 else start
    end = min(len(text), start + SNIPPET)
    pieces, at = ["…" if start else ""], start
    for low, high in spans:
        if low >= at and high <= end:
            pieces += [text[at:low], MARK, text[low:high], UNMARK]
            at = high
    pieces += [text[at:end], "…" if end < len(text) else ""]
    return " ".join("".join(pieces).split())


def _patterns(query: str) -> list[re.Pattern[str]]:
    patterns = []
    for phrase, word in _TERM.findall(query)[:MAX_TERMS]:
        pieces = re.findall(r"\w+", _fold(phrase or word)[0])
        if pieces:
            start = "" if _CJK.match(pieces[0]) else r"(?<!\w)"
            end = r"(?!\w)" if phrase and not _CJK.search(pieces[-1]) else ""
            patterns.append(re.compile(start + r"\W+".join(map(re.escape, pieces)) + end))
    return patterns


def _fold(text: str) -> tuple[str, range | list[int]]:
    """The text without case and accents, as the index compares it, and for each of its characters where it came from."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded, origin = [], []
    for place, character in enumerate(text):
        whole = _CJK.match(character)  # NFKD would take Korean syllables apart, which are searched whole
        for part in character if whole else unicodedata.normalize("NFKD", character).casefold():
            if not unicodedata.combining(part):
                folded.append(part)
                origin.append(place)
    return "".join(folded), origin
