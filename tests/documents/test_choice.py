"""Which pages are sent with a question, in which order."""

import pytest
from fireside.documents import choice
from fireside.documents.choice import Candidates, Page

FILLER = "The committee met and discussed various matters of the year."


def document(count: int, name: str = "report.pdf", **texts: str) -> Candidates:
    """Return a document of so many pages of filler. `texts`: those of some pages, such as p7."""
    pages = {number: texts.get(f"p{number}", f"{FILLER} {number}") for number in range(1, count + 1)}
    return Candidates(name, count, pages)


def first(question: str, *documents: Candidates, earlier: str = "", count: int = 1) -> list[int]:
    return [page.number for page in choice.order(question, earlier, documents)[:count]]


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("How were the payments made?", "Payment is due in spring."),
        ("Is there honeybee-friendly planting? What about honeybees?", "Bees like clover."),
        ("Darf ich kündigen?", "Die KÜNDIGUNG ist schriftlich."),
        ("Wer bezahlt das Altpapier?", "Das Papier wird montags geholt."),
        ("東京の人口は?", "東京は日本の首都です。"),
        ("서울의 인구", "서울은 한국의 수도이다."),
    ],
)
def test_words_match_in_other_forms(question: str, text: str) -> None:
    assert first(question, document(30, p17=text)) == [17]


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("What do pages 30-34 say?", [30, 31, 32, 33, 34]),
        ("Compare pages 3 and 7", [3, 7]),
        ("siehe S. 12", [12]),
        ("Was steht auf Seite 12 bis 14?", [12, 13, 14]),
        ("Explain slide 4 please", [4]),
        ("pp. 3, 5-6", [3, 5, 6]),
        ("第12页讲了什么", [12]),
        ("page 4 and page 999999", [4]),
        ("pages 9-3", []),
    ],
)
def test_pages_that_a_question_names_come_first(question: str, numbers: list[int]) -> None:
    found = choice.named(question, [document(40)])
    assert [page.number for page in found] == numbers
    assert choice.order(question, "", [document(40)])[: len(found)] == found


def test_only_the_document_that_is_named_is_meant() -> None:
    found = choice.named("page 2 of Other.pdf", [document(9, "report.pdf"), document(9, "other.pdf")])
    assert found == [Page(1, 2)]


def test_first_page_and_best_page_of_each_document_come_before_the_rest() -> None:
    one = document(50, p20="whales whales whales", p30="whales", p40="whales and seals")
    two = document(50, p9="a whale")
    wanted = choice.order("Where are whales?", "", [one, two])
    assert wanted[:4] == [Page(0, 20), Page(1, 9), Page(0, 1), Page(1, 1)]
    assert {*wanted[4:6]} == {Page(0, 30), Page(0, 40)}


def test_pages_beside_a_match_come_after_the_matches() -> None:
    assert first("whales", document(50, p20="whales", p40="whales"), count=7) == [20, 1, 40, 19, 21, 39, 41]


def test_question_without_words_of_its_own_means_the_one_before() -> None:
    text = document(30, p8="The bridge was closed.")
    assert first("And why?", text, earlier="When was the bridge closed?") == [8]
    assert first("And the churches of the villages nearby?", text, earlier="When was the bridge closed?")[0] != 8


@pytest.mark.parametrize(
    "question",
    [
        "Summarize this document",
        "Please give me an overview of the report.",
        "What is this paper about?",
        "Fasse das Dokument bitte zusammen.",
        "Worum geht es?",
        "请总结这份文件",
        "이 문서를 요약해 주세요",
        "xyzzy",  # matches nothing
    ],
)
def test_question_about_the_whole_gets_pages_from_everywhere(question: str) -> None:
    for count in (4, 8, 16):
        numbers = sorted(first(question, document(100), count=count))
        gaps = [later - before for before, later in zip([0, *numbers], [*numbers, 101], strict=True)]
        assert numbers[0] == 1 and max(gaps) <= 2 * 100 / (count - 1) + 1
    assert sorted(first(question, document(100), count=100)) == [*range(1, 101)]


def test_summary_of_a_subject_is_no_question_about_the_whole() -> None:
    assert first("Summarize what is said about whales", document(50, p30="whales")) == [30]


def test_pages_are_chosen_while_they_fit() -> None:
    tokens = {Page(0, number): 10.0 * number for number in range(1, 6)}
    assert choice.fill(map(Page, [0] * 4, [3, 5, 2, 1]), tokens, 60) == {Page(0, 3), Page(0, 2), Page(0, 1)}


def test_ranges_are_written_as_people_do() -> None:
    assert choice.written(choice.ranges([22, 1, 18, 17, 19])) == "1, 17-19, 22"
    assert choice.written([]) == ""


@pytest.mark.parametrize(
    "question", ["", "?", "page", "a" * 200_000, "fasse " * 40_000, "pages 1" + ", 1" * 60_000, "\0"]
)
def test_strange_questions_take_no_time(question: str) -> None:
    assert choice.order(question, question, [document(20), document(0)])
