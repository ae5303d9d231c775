"""Quotations in answers: true ones are found in the documents, altered and invented ones are not.

The documents are real texts (the language reference that Python brings along, and the Universal Declaration of Human Rights in other
languages), set in pages as PDF libraries return them: divided words, ligatures, headers, footers, odd spaces. The answers quote them as
models do: other marks, emphasis, ellipses, insertions, line breaks. An altered quotation differs in a word, a number, a negation or the order.
"""

# ruff: noqa: RUF001  # the characters look alike on purpose

import pydoc_data.topics
import random
import re
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from fireside.documents.quotations import find
from fireside.documents.types import Document

from . import Figures

LEAST_FOUND = 0.98  # of the true ones
PAGE_LINES = 40
QUOTATIONS_PER_ANSWER = 20
TOPICS = (
    "assignment", "atom-identifiers", "binary", "booleans", "calls", "class", "compound", "customization", "debugger", "dynamic-features",
    "exceptions", "execmodel", "formatstrings", "function", "identifiers", "import", "naming", "numbers", "objects", "operator-summary",
    "slicings", "specialnames", "strings", "try", "types", "typesseq", "with", "yield",
)  # fmt: skip
DECLARATIONS = {
    "Erklärung.pdf": """Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und
    sollen einander im Geist der Brüderlichkeit begegnen. Jeder hat Anspruch auf die in dieser Erklärung verkündeten Rechte und
    Freiheiten ohne irgendeinen Unterschied, etwa nach Rasse, Hautfarbe, Geschlecht, Sprache, Religion, politischer oder sonstiger
    Überzeugung, nationaler oder sozialer Herkunft, Vermögen, Geburt oder sonstigem Stand. Niemand darf der Folter oder grausamer,
    unmenschlicher oder erniedrigender Behandlung oder Strafe unterworfen werden. Niemand darf willkürlich festgenommen, in Haft
    gehalten oder des Landes verwiesen werden.""",
    "Déclaration.pdf": """Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de
    conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Tout individu a droit à la vie, à la liberté et
    à la sûreté de sa personne. Nul ne sera tenu en esclavage ni en servitude; l'esclavage et la traite des esclaves sont interdits
    sous toutes leurs formes. Nul ne peut être arbitrairement arrêté, détenu ou exilé.""",
    "Декларация.pdf": """Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и
    должны поступать в отношении друг друга в духе братства. Каждый человек имеет право на жизнь, на свободу и на личную
    неприкосновенность. Никто не должен содержаться в рабстве или в подневольном состоянии; рабство и работорговля запрещаются во
    всех их видах.""",
    "宣言.pdf": """すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授けられており、
    互いに同胞の精神をもって行動しなければならない。すべて人は、人種、皮膚の色、性、言語、宗教、政治上その他の意見、国民的若しくは社会的出身、
    財産、門地その他の地位又はこれに類するいかなる事由による差別をも受けることなく、この宣言に掲げるすべての権利と自由とを享有することができる。""",
}
SPACELESS = {"宣言.pdf"}
MARKS = ('""', "“”", "„“", "«»", "»«", "‹›", "‘’", "‚‘", "``''", ">")  # ">": a block quote
NEGATIONS = {
    "not": "",
    "no": "the",
    "never": "always",
    "must": "must not",
    "is": "is not",
    "can": "cannot",
    "are": "are not",
}
NEGATIONS |= {"sind": "sind nicht", "Niemand": "Jeder", "Nul": "Tout", "Никто": "Каждый", "あ": "な", "で": "が"}


def prove(size: int) -> Figures:
    chance = random.Random(19)
    texts = _texts()
    documents = [Document(n, name, _pages(chance, name, text)) for n, (name, text) in enumerate(texts.items(), 1)]
    words = {name: _split(text) for name, text in texts.items()}
    plain = {name: f" {' '.join(_bare(row))} " for name, row in words.items()}
    kinds = [("true", "altered", "true", "altered", "invented")[number % 5] for number in range(size)]
    figures = Figures(size)
    missed: list[str] = []
    counts = dict.fromkeys(kinds, 0)
    for first in range(0, size, QUOTATIONS_PER_ANSWER):
        paragraphs = []
        for kind in kinds[first : first + QUOTATIONS_PER_ANSWER]:
            name, quoted = _quotation(chance, kind, words, plain)
            paragraphs.append((kind, _answer(chance, name, quoted, kind == "true")))
        citations = find("\n\n".join(text for _, text in paragraphs), documents)
        start = 0
        for kind, text in paragraphs:
            statuses = [citation.status for citation in citations if 0 <= citation.start - start < len(text)]
            start += len(text) + len("\n\n")
            counts[kind] += "found" in statuses
            if kind == "true" and statuses in (
                ["not_found"],
                ["other_document"],
            ):  # some passages stand in two documents
                missed.append(f"{statuses[0]}: {text}")
            elif statuses != (["found"] if kind == "true" else ["not_found"]):
                figures.wrong.append(f"{kind}, {statuses}: {text}")
    if len(missed) > (1 - LEAST_FOUND) * kinds.count("true"):
        figures.wrong += missed
    figures.more = "found: " + ", ".join(
        f"{found} of {kinds.count(kind)} {kind} ones" for kind, found in counts.items()
    )
    return figures


# ---- documents


def _texts() -> dict[str, str]:
    """Return real texts as single lines, by the names of their documents."""
    chosen = [name for name in TOPICS if name in pydoc_data.topics.topics]
    texts: dict[str, str] = {}
    for number in range(0, len(chosen), 4):
        whole = "\n".join(pydoc_data.topics.topics[name] for name in chosen[number : number + 4])
        paragraphs = [paragraph for paragraph in whole.split("\n\n") if re.match(r"[A-Z][a-z]", paragraph)]  # no code
        prose = re.sub(r"[*`|\"\[\]<>=_\\\u2018\u2019\u201c\u201d]+", "", " ".join(" ".join(paragraphs).split()))
        prose = re.sub(r"(?<![a-z])'|'(?![a-z ])|(?<!s)'(?= )", "", prose)  # only apostrophes stay
        texts[f"Reference {number // 4 + 1}.pdf"] = re.sub(r"\.{2,}|…", ".", prose)
    return texts | {name: ("" if name in SPACELESS else " ").join(text.split()) for name, text in DECLARATIONS.items()}


def _pages(chance: random.Random, name: str, text: str) -> list[str]:
    """Set a text in pages with a header and a footer, with the noise of PDF libraries."""
    if name in SPACELESS:
        lines = textwrap.wrap(text, 34)
    else:
        lines = []
        for line in textwrap.wrap(text, 78):
            if lines and chance.random() < 0.3 and (divided := re.match(r"([^\W\d_]{3,6})([^\W\d_]{3,})", line)):
                lines[-1] += f" {divided[1]}" + chance.choice("--\u2010\u00ad")
                line = line[divided.end(1) :]
            lines.append(line)
    pages = []
    for number in range(0, len(lines), PAGE_LINES):
        page = "\n".join(lines[number : number + PAGE_LINES])
        if chance.random() < 0.5:
            for letters, ligature in (("ffi", "ﬃ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("ff", "ﬀ")):
                page = page.replace(letters, ligature)
        if chance.random() < 0.3:
            page = unicodedata.normalize("NFD", page)
        page = page.replace("'", chance.choice("'’")).replace(" - ", chance.choice((" – ", " — ", " - ")))
        page = re.sub(" ", lambda _: chance.choices((" ", "  ", "\u00a0"), (95, 3, 2))[0], page)
        pages.append(f"{name.removesuffix('.pdf')}\n{page}\nPage {number // PAGE_LINES + 1}")
    return pages


def _split(text: str) -> list[str]:
    return text.split() if " " in text else list(text)


def _bare(words: list[str]) -> list[str]:
    """Return words without the punctuation around them, as this proof compares them."""
    bare = (re.sub(r"^\W+|\W+$", "", word).lower() for word in words)
    return [word for word in bare if word]


# ---- quotations


def _quotation(
    chance: random.Random, kind: str, words: dict[str, list[str]], plain: dict[str, str]
) -> tuple[str, list[str]]:
    """Return the name of a document and the words of a quotation from it. An altered or invented one stands in no document."""
    while True:
        name = chance.choice(list(words))
        row = words[name]
        length = min(chance.randint(6, 60), len(row) // 3) + (8 if name in SPACELESS else 0)
        start = chance.randrange(len(row) - length)
        quoted = row[start : start + length]
        if kind == "invented":
            quoted = _invented(chance, row, length)
        cut = length // 2 if length > 24 and kind != "invented" and chance.random() < 0.3 else length
        changed = chance.choice(ALTERATIONS)(chance, quoted[:cut], row) if kind == "altered" else quoted[:cut]
        bare = _bare(changed)
        if kind == "true" or (
            "".join(bare) not in "".join(_bare(row))
            and all(f" {' '.join(bare)} " not in text for text in plain.values())
        ):
            rest = quoted[cut + chance.randint(1, 8) :]
            ellipsis = chance.choice(("...", "…", "[...]", "[…]", "(…)"))
            return name, [*changed, ellipsis, *rest] if cut < length else changed


def _change_word(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    place = chance.randrange(len(quoted))
    return [*quoted[:place], chance.choice(row), *quoted[place + 1 :]]


def _drop_word(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    place = chance.randrange(1, len(quoted) - 1)
    return [*quoted[:place], *quoted[place + 1 :]]


def _add_word(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    place = chance.randrange(1, len(quoted) - 1)
    return [*quoted[:place], chance.choice(row), *quoted[place:]]


def _swap_words(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    place = chance.randrange(len(quoted) - 1)
    return [*quoted[:place], quoted[place + 1], quoted[place], *quoted[place + 2 :]]


def _swap_halves(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    place = chance.randrange(2, len(quoted) - 2)
    return [*quoted[place:], *quoted[:place]]


def _change_number(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    """Change a digit of a number, its sign or its separator. Without a number the quotation stays as it is, and another is chosen."""
    numbers = [place for place, word in enumerate(quoted) if re.search(r"\d", word)]
    if not numbers:
        return quoted
    place = chance.choice(numbers)
    digit = re.search(r"\d", quoted[place])
    assert digit
    start, end = digit.span()
    new = chance.choice([str((int(digit[0]) + 1) % 10), f"{digit[0]}0", f"{digit[0]}.{digit[0]}"])
    return [*quoted[:place], quoted[place][:start] + new + quoted[place][end:], *quoted[place + 1 :]]


def _negate(chance: random.Random, quoted: list[str], row: list[str]) -> list[str]:
    places = [place for place, word in enumerate(quoted) if word in NEGATIONS]
    if not places:
        return quoted
    place = chance.choice(places)
    return [*quoted[:place], *NEGATIONS[quoted[place]].split(), *quoted[place + 1 :]]


Alteration = Callable[[random.Random, list[str], list[str]], list[str]]
ALTERATIONS: Sequence[Alteration] = (
    _change_word, _drop_word, _add_word, _swap_words, _swap_halves, _change_number, _change_number, _negate, _negate,
)  # fmt: skip


def _invented(chance: random.Random, row: list[str], length: int) -> list[str]:
    """Return words that follow each other in the text two by two, but never all."""
    following: defaultdict[str, list[str]] = defaultdict(list)
    for word, after in pairwise(row):
        following[word].append(after)
    words = [chance.choice(row)]
    while len(words) < max(length, 8):
        words.append(chance.choice(following[words[-1]] or row))
    return words


# ---- answers


def _answer(chance: random.Random, name: str, quoted: list[str], is_true: bool) -> str:
    """Return an answer that quotes these words of a document, as a model may write it."""
    spaceless = name in SPACELESS
    space = "" if spaceless else " "
    words = list(quoted)
    if is_true and not spaceless and chance.random() < 0.2:  # in others, it could stand for the change
        words.insert(len(words) // 2, chance.choice(("[sic]", "[of Python]", "[emphasis added]")))
    if not spaceless and chance.random() < 0.2:
        place = chance.randrange(len(words))
        if words[place].isalpha():
            words[place] = chance.choice(("**{}**", "*{}*", "_{}_", "`{}`")).format(words[place])
    text = space.join(words)
    text = text.replace("'", chance.choice("'’")).replace(" - ", chance.choice((" - ", " – ", "—")))
    if chance.random() < 0.3:
        text = text[0].swapcase() + text[1:]
    if chance.random() < 0.2 and text[0].isalpha() and not spaceless:
        text = f"[{text[0]}]{text[1:]}"
    marks = "「」" if spaceless else chance.choice(MARKS)
    if marks == ">":
        lines = textwrap.wrap(text, 60, break_on_hyphens=False)
        return f"As {name} says:\n\n" + "\n".join(f"> {line}" for line in lines) + f"\n> — {name}\n\nThat is all."
    opening, closing = marks[: len(marks) // 2], marks[len(marks) // 2 :]
    if opening == "«" and chance.random() < 0.5:
        opening, closing = "«\u00a0", "\u00a0»"
    return chance.choice(
        (
            f"According to {name}, {opening}{text}{closing} is what's said.",
            f"The users' manual ({name}) says: {opening}{text}{closing}",
            f"- {opening}{text}{closing} ({name}, p. 3)\n- It's the rule.",
        )
    )
