"""What the word index holds of a text, what a query asks of it, and the snippet that shows why a text was found.

Chinese, Japanese and Korean are indexed in overlapping pairs of characters, since they do not put spaces between words and
FTS5's own trigram tokenizer finds nothing for two characters.
"""

import re
import unicodedata

MARK, UNMARK = "\ue000", "\ue001"  # around each match in a snippet; private-use characters, so no escaping is needed

MAX_TERMS = 16
SNIPPET = 160  # characters
_SCANNED = 50_000  # characters of a text in which its snippet is looked for

_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ACCENTED = re.compile(f"[^\0-\x7f{_CJK.pattern[1:-2]}]+")  # FTS5 drops every accent that is apart, and few others
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')


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
