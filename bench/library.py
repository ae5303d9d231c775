"""A generated database of conversations of ten messages, in pseudo-English with some Japanese.

Word frequencies follow Zipf's law. The same seed gives the same database.
"""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate, count
from pathlib import Path

from fireside import db, queries
from fireside.queries import search

MESSAGES = 10  # of each conversation
RARE = "quetzalcoatl"
JAPANESE = ("東京の天気", "図書館で本", "新幹線の時刻", "電子計算機", "日本語の文法")
USAGE = '{"prompt_tokens": 300, "completion_tokens": 75, "total_tokens": 375}'


@cache
def _language() -> tuple[list[str], list[str]]:
    """Return words, the most frequent first, and sentences of them."""
    dice = random.Random(1)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u")]
    words = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "with"]
    known = set(words)
    while len(words) < 20_000:
        word = "".join(dice.choices(syllables, k=dice.choice((2, 2, 3, 3, 4))))
        if word not in known:
            known.add(word)
            words.append(word)
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    sentences = [
        " ".join(dice.choices(words, cum_weights=weights, k=dice.randint(8, 20))).capitalize() + "."
        for _ in range(50_000)
    ]
    return words, sentences


class Writer:
    """Generates texts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words, self.sentences = _language()

    def text(self, sentences: int = 4) -> str:
        text = " ".join(self.random.choices(self.sentences, k=sentences))
        chance = self.random.random()
        if chance < 0.00005:
            text += f" {RARE}"
        elif chance < 0.02:
            text += self.random.choice(JAPANESE)
        return text

    def title(self) -> str:
        return " ".join(self.random.choice(self.sentences).split()[:6]).rstrip(".")


def build(path: Path, conversations: int, long: int) -> None:
    """Fill a database that has only user 1. The first and oldest conversation has `long` messages."""
    writer = Writer(conversations)
    start = datetime(2024, 1, 1)

    def moment(conversation: int, second: int = 0) -> str:
        return (start + timedelta(minutes=conversation, seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%f")

    def rows() -> Iterator[tuple[object, ...]]:
        numbers = count(1)
        for conversation in range(1, conversations + 2):
            for place in range(long if conversation == 1 else MESSAGES):
                number, content = next(numbers), writer.text()
                answered = ("assistant", content, "lmstudio", "bench", USAGE)
                kind = answered if place % 2 else ("user", content, None, None, None)
                yield number, conversation, number - 1 if place else None, *kind, moment(conversation, place % 60)

    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.create_function("words", 1, search.words, deterministic=True)
        conn.execute("PRAGMA cache_size = -200000")
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute("BEGIN IMMEDIATE")
        titles = ((number, writer.title()) for number in range(1, conversations + 2))
        conn.executemany(
            "INSERT INTO conversations (id, user_id, title, title_key, provider_id, model, created_at, updated_at)"
            " VALUES (?, 1, ?, ?, 'lmstudio', 'bench', ?, ?)",
            ((n, title, queries.types.title_key(title), moment(n), moment(n)) for n, title in titles),
        )
        log = json.dumps([*[4] * 75, {"event": "done", "data": {"status": "ok", "message_id": 0}}])
        conn.executemany(
            "INSERT INTO messages (id, conversation_id, parent_id, role, content, status, provider_id, model, token_usage, created_at)"
            " VALUES (?, ?, ?, ?, ?, 'complete', ?, ?, ?, ?)",
            rows(),
        )
        conn.execute(
            "INSERT INTO generations (id, message_id, provider_id, model, log)"
            " SELECT printf('00000000-0000-4000-8000-%012x', id), id, 'lmstudio', 'bench', ? FROM messages WHERE role = 'assistant'",
            (log,),
        )
        conn.execute(
            "UPDATE conversations SET active_message_id = (SELECT max(id) FROM messages WHERE conversation_id = conversations.id)"
        )
        conn.execute("INSERT INTO message_words (rowid, owner, text) SELECT id, 'u1', words(content) FROM messages")
        conn.execute("INSERT INTO title_words (rowid, owner, text) SELECT id, 'u1', words(title) FROM conversations")
        conn.execute("COMMIT")
        queries.conversations.optimize(conn)
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.prepare(path)
