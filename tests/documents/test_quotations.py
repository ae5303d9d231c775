"""Quotations: which texts of an answer are quotations, when they count as found, and that hostile texts take no longer."""

# ruff: noqa: RUF001  # the characters look alike on purpose

import time

import pytest
from fireside.documents.quotations import find, may_quote
from fireside.documents.types import Citation, Document
from fireside.queries import types
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType, structs

REPORT = [
    "Annual report\nThe company did not pay a divi-\ndend of 5.2 % in the year 2023, and its well-\nknown ofﬁce in “Paris” was closed.\n1",
    "Annual report\nThe board – all 12 members – approved the plan; costs fell by -3 % to $1,200. The quick brown\n2",
    "Annual report\nfox jumps over the lazy dog and runs into the wood-\n3",
    "Annual report\nland where nobody ever goes. 日本国民は、正当に選挙された国会における代表者を通じて行動し、\n4",
    "Annual report\nThe dogs’ owner paid 1½ dollars for 10² bones. Cafe\u0301 prices are up. A range of 10-20 or 10² units, see [12] or ask.\n5",
]
CONTRACT = ["This contract shall be governed by the laws of Norway and no other country."]
DOCUMENTS = [Document(1, "report.pdf", REPORT), Document(2, "report 2.docx", CONTRACT)]

FOUND = [
    ('"the company did not pay a dividend of 5.2% in the year 2023"', 1),
    ("“its well-known office in ‘Paris’ was closed”", 1),
    ("„its well known office in Paris was closed“", 1),
    ("»costs fell by \u22123% to $1,200«", 2),
    ("» costs fell by -3% to $1,200 «", 2),
    ("«\u00a0costs fell by -3 %\u202fto $1,200\u00a0»", 2),
    ("‹all 12 members approved the plan›", 2),
    ("‘costs fell by -3 % to $1,200’", 2),
    ("‚costs fell by -3 % to $1,200‘", 2),
    ("”costs fell by -3 % to $1,200”", 2),
    ("``The quick brown fox jumps over the lazy dog''", 2),
    ("「正当に選挙された国会における代表者を通じて」", 4),
    ("『国会における代表者を通じて行動し』", 4),
    ('"正当に選挙された\n国会における代表者を通じて"', 4),
    ("‘The dogs’ owner paid 1½ dollars for 10² bones’", 5),
    ('"Café prices are up. A range of 10–20"', 5),
    ('"runs into the woodland where nobody ever goes"', 3),
    ('"[T]he company did […] pay a dividend ... in the year 2023"', 1),
    ('"...the quick brown fox [an animal] jumps over the *lazy* dog…"', 2),
    ('"The board [of directors] approved the plan"', 2),
    ('"or 10² units, see [12] or ask"', 5),
    ('"Costs **fell** by [-3 %](http://a.b) to\\$1,200"', 2),
    ("> The quick brown fox\njumps over\n> the lazy dog", 2),
    ("> “The quick brown fox jumps over the lazy dog” (p. 2)", 2),
    ("> The quick brown fox jumps over the lazy dog (report.pdf, page 2)", 2),
    ("> The quick brown fox jumps over the lazy dog\n> — report.pdf, p. 2", 2),
    ("- item\n\n  > The quick brown fox jumps over the lazy dog", 2),
    ('| a | b |\n|---|---|\n| "short" | see "fox jumps over the lazy dog" |', 3),
]
NOT_FOUND = [
    '"the company did pay a dividend of 5.2% in the year 2023"',
    '"the company did not pay a dividend of 52% in the year 2023"',
    '"the company did not pay a dividend of 5,2% in the year 2023"',
    '"the company did not pay a dividend of 5.2 in the year 2023"',
    '"the firm did not pay a dividend of 5.2% in the year 2023"',
    '"the company did not did pay a dividend of 5.2%"',
    '"costs fell by 3 % to $1,200"',
    '"costs fell by -3 % to €1,200"',
    '"costs fell by -3 % to $1200"',
    '"owner paid 1½ dollars for 102 bones"',
    '"in the year 2023 … the company did not pay a dividend"',
    '"fox jumps over the lazydog and runs"',
    '"fox jumps over the lazy do"',
    "「正当に選挙された国会における代表者を通じず」",
    "> This whole sentence stands in none of the documents.",
    '"The quick brown … no other country"',
]
IGNORED = [
    '"only four words here"',
    "「九文字の短い引用文」",
    "It's the dogs' owner's fault, isn't it, that they're 5' tall and don't run?",
    "She’s the dogs’ owner, isn’t she, and they’re glad that he’s gone.",
    'A 5" pipe and a pipe of 6 inches or more',
    '```\n"the company did not pay a dividend of 5.2%"\n```',
    '    x = "the company did not pay a dividend of 5.2%"',
    'Type `"the company did not pay a dividend"` or `` > "it did not pay a dividend" ``.',
    '[link](http://a.b "the company did not pay a dividend")',
    '<a title="the company did not pay a dividend">text</a>',
    '"a … b … c … d … e … f"',
    "1 > 0 and 2 > 1 and 3 > 2 and 4 > 3",
]


@pytest.mark.parametrize(("answer", "page"), FOUND)
def test_quotation_is_found_whatever_its_marks_and_typography(answer: str, page: int) -> None:
    (citation,) = find(f"It says:\n\n{answer}\n\nThat’s it.", DOCUMENTS)
    assert citation.status == "found" and (citation.attachment_id, citation.name, citation.page) == (
        1,
        "report.pdf",
        page,
    )
    assert may_quote(answer)


@pytest.mark.parametrize("answer", NOT_FOUND)
def test_changed_word_number_sign_or_order_is_not_found(answer: str) -> None:
    assert [citation.status for citation in find(answer, DOCUMENTS)] == ["not_found"]


@pytest.mark.parametrize("answer", IGNORED)
def test_short_texts_code_and_apostrophes_are_no_quotations(answer: str) -> None:
    assert find(answer, DOCUMENTS) == []


def test_citation_says_where_the_quotation_stands_in_the_answer() -> None:
    answer = "🦊 \r\n“no such words in any of them” and\r\n\r\n> the quick brown\r\n> fox jumps over\r\n> — report.pdf"
    first, second = find(answer, DOCUMENTS)
    assert answer[first.start : first.end] == "“no such words in any of them”"
    assert answer[second.start : second.end] == "the quick brown\r\n> fox jumps over"


@pytest.mark.parametrize(
    ("answer", "status", "document"),
    [
        ('report.pdf: "governed by the laws of Norway"', "other_document", 2),
        ('The Report says "governed by the laws of Norway"', "other_document", 2),
        ('`report 2.docx` says "governed by the laws of Norway"', "found", 2),
        ('Report 2 says "governed by the laws of Norway"', "found", 2),
        ('report.pdf and report 2.docx: "governed by the laws of Norway"', "found", 2),
        ('It is "governed by the laws of Norway"\n\nreport.pdf is long.', "found", 2),
        ("report.pdf:\n\n> governed by the laws of Norway", "other_document", 2),
        ("> governed by the laws of Norway\n\n— report.pdf, page 1", "other_document", 2),
        ('"governed by the laws of the report.pdf"', "not_found", UNSET),
    ],
)
def test_other_document_than_the_one_that_the_paragraph_names(
    answer: str, status: str, document: int | UnsetType
) -> None:
    (citation,) = find(answer, DOCUMENTS)
    assert (citation.status, citation.attachment_id) == (status, document)


def test_same_text_in_two_documents_is_found_in_the_one_that_is_named() -> None:
    twins = [Document(1, "a.txt", CONTRACT), Document(2, "twin.txt", ["", *CONTRACT])]
    quotation = '"governed by the laws of Norway"'
    assert find(quotation, twins) == [Citation(0, 32, "found", 1, "a.txt", 1)]
    assert find(f"{quotation}, says twin.txt", twins) == [Citation(0, 32, "found", 2, "twin.txt", 2)]


def test_child_process_writes_what_the_service_reads() -> None:
    fields = [[(field.name, field.type) for field in structs.fields(kind)] for kind in (Citation, types.Citation)]
    assert fields[0] == fields[1]


@given(
    st.lists(
        st.sampled_from(
            [*'"“”„«»‘’‚`>-|[]()*\\\n\r\t .…a1日\u00ad\0', "''", "the quick brown fox jumps over the", "5’ "]
        )
    )
)
def test_any_answer_gets_citations_in_order_within_it(pieces: list[str]) -> None:
    answer = "".join(pieces)
    citations = find(answer, DOCUMENTS)
    places = [place for citation in citations for place in (citation.start, citation.end)]
    assert places == sorted(places) and all(0 <= place <= len(answer) for place in places)
    assert may_quote(answer) or not citations


HOSTILE_ANSWERS = [
    '"',
    "“",
    "‘",
    "«",
    "`",
    "``",
    "> ",
    "[",
    "…",
    "*",
    "“a ",
    '"a b c d e f" ',
    '"a a a … a … a b" ',
    '| "',
    "> a b c d e f\n\n",
]
HOSTILE_PAGES = ["a ", "-\n", "a-\n", "ﬁ ", "1 - ", "](", "é\u0301", "日", "\n"]


def _seconds(answer: str, page: str) -> float:
    started = time.process_time()
    find(answer, [Document(1, "x.pdf", [page] * 3)])
    return time.process_time() - started


@pytest.mark.parametrize(
    ("answer", "page"), [*((one, "a ") for one in HOSTILE_ANSWERS), *(('"a b c d e f"', one) for one in HOSTILE_PAGES)]
)
def test_time_grows_linearly_with_hostile_texts(answer: str, page: str) -> None:
    def seconds(size: int) -> float:
        return min(
            _seconds(
                answer * (size // len(answer)) if answer in HOSTILE_ANSWERS else answer, page * (size // len(page))
            )
            for _ in range(2)
        )

    small, large = seconds(1_000), seconds(16_000)
    assert large < 16 * 5 * max(small, 0.002), f"{small:.4f} s and {large:.4f} s"
