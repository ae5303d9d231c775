import base64
import contextlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside.backends.lmstudio import conversation_folders
from fireside.transfer import source, steps
from fireside.transfer import split as splitting
from fireside.transfer.source import Source
from fireside.transfer.split import lift, split
from fireside.transfer.steps import Skipped
from fireside.transfer.transcript import Conversation, Unreadable
from hypothesis import given, settings
from hypothesis import strategies as st

from .. import talks
from ..exports import answered, asked, block, chatgpt, dumps, lmstudio, node, openwebui, picture, png, said, turn
from .reading import take, take_bytes, write


def rivers(question: str = "What is a river?") -> dict[str, Any]:
    return lmstudio(turn(asked(question)), turn(answered(block("Water."))))


def bridges(id: str = "c0ffee") -> dict[str, Any]:
    nodes = node("q", None, "user", f"What is {id}?"), node("a", "q", "assistant", "A bridge.")
    return chatgpt(*nodes, current="a", id=id, title=f"Bridge {id}")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def packed(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "upload.json"  # a zip is known by its content
    path.write_bytes(zipped(files))
    return path


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    return write(folder / "unpacked", files)


# ---- JSON, an element at a time


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(['"', "\\", '\\"', "[", "}", ",", "é\u2028"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


SIZES = st.integers(1, 40)
ROWS = st.lists(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=50)
@given(ROWS, st.lists(JSON, max_size=4), SIZES, st.booleans(), st.sampled_from([None, 1]), st.data())
def test_arrays_and_json_lines_are_split_and_any_other_file_is_one_element(
    rows: list[Any], more: list[Any], size: int, ascii: bool, indent: int | None, data: st.DataObject
) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    array = json.dumps([*more, *rows], ensure_ascii=ascii, indent=indent)
    lines = end.join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    whole = "\ufeff " + json.dumps(rows[0], ensure_ascii=ascii, indent=indent)
    for text, expected in ((array, [*more, *rows]), (lines, rows), (whole, rows[:1]), (" [ ] ", [])):
        assert [json.loads(part or b"") for part in split(pieces(text.encode(), size))] == expected


@settings(max_examples=50)
@given(st.lists(JSON, min_size=1, max_size=4), SIZES, st.data())
def test_an_array_that_is_cut_off_gives_the_elements_before(values: list[Any], size: int, data: st.DataObject) -> None:
    text, parts = json.dumps(values).encode(), []
    with pytest.raises(Unreadable, match="ends in the middle"):
        for part in split(pieces(text[: data.draw(st.integers(1, len(text) - 1))], size)):
            parts.append(json.loads(part or b""))
    assert parts == values[: len(parts)]


@settings(max_examples=50)
@given(st.binary(max_size=60), SIZES)
def test_any_bytes_are_split_or_refused(data: bytes, size: int) -> None:
    with contextlib.suppress(Unreadable):
        assert len(list(split(pieces(b"[" + data, size)))) <= len(data)


def test_bytes_after_an_array_are_reported() -> None:
    parts = split(iter([b"[1]  ", b" ", b"[2]"]))
    assert next(parts) == b"1"
    with pytest.raises(Unreadable, match="more after the end"):
        next(parts)


def test_an_element_or_a_line_above_the_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "ELEMENT_BYTES", 100)
    large = b'{"b": "' + b"x" * 1000 + b'"}'
    for form in (b'[{"a": 1}, %s, {"c": 3}]', b'{"a": 1}\n%s\n{"c": 3}'):
        for size in (7, 5000):
            parts = split(pieces(form % large, size))
            assert [part and json.loads(part) for part in parts] == [{"a": 1}, None, {"c": 3}]
            assert list(split(pieces(b"{" + b" " * 200 + b"}", size))) == [None]


def picture_of(size: int) -> bytes:
    return png() + random.Random(size).randbytes(size)


def test_a_byte_order_mark_is_removed_whatever_the_length_of_the_first_chunk() -> None:
    for length in range(splitting.IMAGE_CHARACTERS + 30, splitting.IMAGE_CHARACTERS + 40):
        text = b"\xef\xbb\xbf[1" + b" " * (length - 6) + b"]"
        (part,) = split(lift(pieces(text, length), lambda start, end: ""))
        assert json.loads(part or b"") == 1


@settings(max_examples=30)
@given(
    st.lists(JSON | st.sampled_from([10, 12_200, 12_260, 12_300, 90_000]).map(picture_of), max_size=6),
    st.sampled_from([1_000, 16_000, 50_000, 10**6]),
    st.sampled_from([None, 1]),
)
def test_large_images_are_lifted_out_and_found_at_their_place(values: list[Any], size: int, indent: int | None) -> None:
    def row(value: Any) -> dict[str, Any]:
        return {"data": base64.b64encode(value).decode() if isinstance(value, bytes) else value, "a": '"data":"x'}

    data = json.dumps([row(value) for value in values], indent=indent).encode()
    places: list[slice] = []

    def name_image(start: int, end: int) -> str:
        places.append(slice(start, end))
        return str(len(places) - 1)

    rows = json.loads(b"".join(lift(pieces(data, size), name_image)))
    for found in rows:
        if file := found.pop("file", None):
            assert found["data"] == ""
            found["data"] = data[places[int(file)]].decode()
    assert rows == [row(value) for value in values]
    assert len(places) == sum(isinstance(value, bytes) and len(value) > 12_288 for value in values)


def test_a_text_that_only_begins_like_an_image_is_left_out() -> None:
    data = b'[{"data": "' + b"A" * 20_000 + b'!", "b": 1}, {"data": "' + b"A" * 20_000
    lifted = b"".join(lift(pieces(data, 7_000), lambda start, end: "nothing"))
    assert lifted == b'[{"data":"!", "b": 1}, {"data":"'


@settings(max_examples=25)
@given(ROWS, SIZES)
def test_a_damaged_line_loses_no_other_line(rows: list[Any], size: int) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    data = b"\n".join([lines[0], lines[0][:-1], b'"{[', *lines])
    parts = [part for part in split(pieces(data, size)) if part in lines]
    assert parts == [lines[0], *lines]


# ---- files, folders and zips


def test_a_folder_of_lmstudio_is_read_with_its_subfolders_and_damaged_files_are_named(tmp_path: Path) -> None:
    files = {
        "1.conversation.json": dumps(rivers("one")),
        "School/Deep/2.conversation.json": dumps(rivers("two")),
        "School/3.conversation.json": dumps(rivers("three"))[:-40],
        "4.conversation.json": b"",
        "notes.json": b"{}",
    }
    folder = unpacked(tmp_path, files)
    with contextlib.suppress(OSError):  # Windows may not allow it
        (folder / "dangling.conversation.json").symlink_to(tmp_path / "nowhere")
    read, skipped = take(folder)
    found = sorted((conversation.messages[0].content, conversation.folder) for conversation in read)
    assert found == [("one", ""), ("two", "School/Deep")]
    invalid = "is not valid JSON"
    assert skipped == [Skipped("4.conversation.json", invalid), Skipped("School/3.conversation.json", invalid)]


def test_a_conversation_is_the_same_whatever_its_file_is_called(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, {"1.conversation.json": dumps(rivers()), "a/renamed.json": dumps(rivers())})
    assert take(folder / "1.conversation.json")[0] == take(folder / "a" / "renamed.json")[0]


def files_of(opened: Source, conversation: Any) -> list[list[tuple[str, bytes]]]:
    """Return the name and the bytes of each attachment, by message, in the steps that a child sends."""
    assert isinstance(conversation, Conversation)
    files: dict[bytes, bytes] = {}
    found: list[list[tuple[str, bytes]]] = []
    for step in opened.send(conversation):
        if isinstance(step, steps.File):
            files[step.sha256] = step.data
        elif isinstance(step, steps.Add):
            found.append([(attached.name, files[attached.sha256]) for attached in step.attachments])
        else:
            assert not isinstance(step, steps.Skip), step.skipped
    return found


def test_files_of_lmstudio_come_from_the_folder_beside_its_conversations_only(tmp_path: Path) -> None:
    names = ("17 - cat.png", "missing.png", "../secret.png", str(tmp_path / "unpacked" / "secret.png"))
    question = asked("Look", *names)
    question["content"] += [
        {"type": "file", "fileIdentifier": name, "fileType": "text/plain", "sizeBytes": 9}
        for name in ("18 - a.json", "gone.txt")
    ]
    chat = lmstudio(turn(question))
    home = unpacked(
        tmp_path,
        {
            "conversations/Pets/1.conversation.json": dumps(chat),
            "user-files/17 - cat.png": png(7),
            "user-files/18 - a.json": dumps([bridges()]),
            "user-files/18 - a.json.metadata.json": b"{}",
            "secret.png": png(9),
        },
    )
    folder = home / "conversations" / "Pets"
    for chosen in (folder / "1.conversation.json", folder, folder.parent):
        with contextlib.closing(Source(chosen)) as opened:
            (read,) = opened
            assert isinstance(read, Conversation)
            assert files_of(opened, read) == [[("cat.png", png(7)), ("a.json", dumps([bridges()]))]]
            assert read.losses == {"image": 3, "document": 1}
            assert read.folder == ("Pets" if chosen == folder.parent else "")
    (read,), skipped = take(home)
    assert skipped == [], "an attachment is not a file with conversations"


def test_a_chatgpt_zip_in_parts_is_read_with_its_files(tmp_path: Path) -> None:
    pictures = picture("sediment://file_0001"), picture("file-service://file-Ab9")
    lost = picture("file-service://file-lost")
    uploads = [
        {"id": "file-Plan1", "name": "plan.pdf", "mime_type": "application/pdf"},
        {"id": "file-Chats1", "name": "chats.json", "mime_type": "application/json"},
        {"id": "file-Gone", "name": "gone.docx", "mime_type": "application/msword"},
    ]
    chat = chatgpt(
        node("q", None, "user", *pictures, kind="multimodal_text", metadata={"attachments": uploads}),
        node("a", "q", "assistant", lost, "Nice.", kind="multimodal_text"),
        node("q2", "a", "user", "Again", metadata={"attachments": uploads[:1]}),
        current="q2",
    )
    files = {
        "chat.html": b"<html>",
        "user.json": b'{"id": "user-1"}',
        "__MACOSX/._conversations.json": b"\0\5",
        "conversations-000.json": dumps([bridges("one"), {"mapping": {}, "title": "Empty"}, bridges("two")]),
        "conversations-001.json": dumps([chat]),
        "user-1/file_0001-sanitized.dat": png(1),
        "file-Ab9-photo of me.png": png(2),
        "file-Plan1.dat": b"%PDF-1.7 plan",
        "file-Chats1-chats.json": dumps([bridges("not one of these")]),
        "conversation_asset_file_names.json": dumps({"file-Plan1.dat": "plan.pdf"}),
    }
    with contextlib.closing(Source(packed(tmp_path, files))) as opened:
        one, empty, two, read = opened
        assert isinstance(one, Conversation) and isinstance(two, Conversation) and isinstance(read, Conversation)
        assert [one.title, two.title] == ["Bridge one", "Bridge two"]
        assert empty == Skipped("conversations-000.json: Empty", "has no messages")
        contents = [message.content for message in read.messages]
        assert files_of(opened, read) == [
            [
                ("plan.pdf", b"%PDF-1.7 plan"),
                ("chats.json", dumps([bridges("not one of these")])),
                ("file_0001", png(1)),
                ("file-Ab9", png(2)),
            ],
            [],
            [("plan.pdf", b"%PDF-1.7 plan")],
        ]
        assert contents == ["**gone.docx** (not imported)", "Nice.\n\n[image missing: file-lost]", "Again"]
        assert read.losses == {"image": 1, "document": 1}
        assert opened.read == opened.size


@pytest.mark.parametrize("make", [packed, unpacked])
def test_any_other_zip_or_folder_gives_all_its_json(tmp_path: Path, make: Any) -> None:
    row = openwebui(said("a", None, "user", "hi"), current="a")
    files = {"chats/export.json": dumps([row]), "readme.txt": b"x", "other.json": b'{"title": "Stray"}'}
    read, skipped = take(make(tmp_path, files))
    assert [conversation.title for conversation in read] == ["Boats"]
    assert [item.file for item in skipped] == ["other.json: Stray"]


def test_a_zip_folder_or_file_with_nothing_in_it_is_reported(tmp_path: Path) -> None:
    for data in (b"PK\3\4", b"PK\3\4" + b"x" * 200):
        assert take_bytes(tmp_path, "x.zip", data) == ([], [Skipped("x.zip", "is not valid JSON")])
    with pytest.raises(Unreadable, match="no conversations"):
        take_bytes(tmp_path, "x.zip", b"PK\5\6" + b"\0" * 18)
    with pytest.raises(Unreadable, match="No such file"):
        Source(tmp_path / "nowhere.json")
    (tmp_path / "x.zip").unlink()
    with pytest.raises(Unreadable, match="no conversations"):
        Source(tmp_path)


# ---- limits


def test_a_zip_member_above_the_limit_of_a_conversation_is_skipped(tmp_path: Path) -> None:
    bomb = b'[{"mapping": {"a": "' + b" " * splitting.ELEMENT_BYTES + b'"}}]'
    files = {"conversations-000.json": bomb, "conversations-001.json": dumps([bridges()]), "photo": picture_of(500_000)}
    read, skipped = take(packed(tmp_path, files))
    assert (len(read), skipped) == (1, [Skipped("conversations-000.json", "is larger than 64 MB")])


def test_an_answer_that_repeats_itself_is_no_zip_bomb(tmp_path: Path) -> None:
    """Answers of small models can pack to a thousandth of their size."""
    talk = lmstudio(turn(asked("Count")), *(turn(answered(block("one two " * 20_000))) for _ in range(20)))
    read, skipped = take(packed(tmp_path, {"1.conversation.json": dumps(talk)}))
    assert (len(read), skipped) == (1, [])


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "ELEMENT_BYTES", 1_000_000)
    path = packed(tmp_path, {f"{n}.json": bytes(900_000) for n in range(4)})
    with pytest.raises(Unreadable, match="unpacks to more than 200 times its size"):
        Source(path)


@pytest.mark.parametrize("make", [packed, unpacked])
def test_an_import_ends_at_the_limits_of_bytes_and_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    path = make(tmp_path, {f"{number}.json": dumps([bridges()]) for number in range(20)})
    monkeypatch.setattr(source, "MAX_READ_BYTES", len(dumps([bridges()])) + 1000)
    read, skipped = take(path)
    assert len(read) in (1, 2) and len(skipped) == 1
    assert "more than" in skipped[0].reason and "the rest was left out" in skipped[0].reason
    monkeypatch.setattr(source, "MAX_FILES", 19)
    with pytest.raises(Unreadable, match="more than 19 files"):
        Source(path)


def test_a_zip_member_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = packed(tmp_path, {"conversations.json": dumps([bridges()] * 50)})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 24, 100)  # the unpacked size in the list of files
    path.write_bytes(data)
    read, skipped = take(path)
    assert (read, len(skipped)) == ([], 1)


def test_an_image_above_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 1000)
    chat = chatgpt(node("q", None, "user", picture("sediment://file_1"), "?", kind="multimodal_text"), current="q")
    read, _ = take(packed(tmp_path, {"conversations.json": dumps([chat]), "file_1.png": picture_of(1000)}))
    assert [message.attachments for message in read[0].messages] == [[]]


def test_file_that_is_attached_a_thousand_times_is_sent_once(tmp_path: Path) -> None:
    parts = [picture("sediment://file_1")] * 500 + [picture("sediment://file_2")] * 500
    chat = chatgpt(node("q", None, "user", *parts, kind="multimodal_text"), current="q")
    files = {"file_1.png": picture_of(100_000), "file_2.png": picture_of(100_000)}
    with contextlib.closing(Source(packed(tmp_path, {"conversations.json": dumps([chat])} | files))) as opened:
        (begin, file, add, end) = opened.steps()
        assert isinstance(begin, steps.Begin) and isinstance(end, steps.End)
        assert isinstance(file, steps.File) and isinstance(add, steps.Add)
        assert [attached.sha256 for attached in add.attachments] == [file.sha256] * 1000


def test_rows_that_are_no_conversations_are_reported_once_and_not_read_to_their_end(tmp_path: Path) -> None:
    for data in (b"[" + b"0," * 500 + b"0]", b'{"chats": [' + b"0," * 500 + b"0]}"):
        read, (row,) = take_bytes(tmp_path, "x.json", data)
        assert read == [] and "is not a conversation of Fireside, ChatGPT" in row.reason
    many = b"[" + b"{}," * 100_000 + b"]]"
    _, (_, last) = take_bytes(tmp_path, "x.json", many)
    assert "too much in it" in last.reason
    read, skipped = take(unpacked(tmp_path, {"conversations.json": dumps([bridges()]), "feedback.json": many}))
    assert (len(read), skipped) == (1, [])


def test_conversations_with_too_many_messages_and_too_many_unreadable_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_MESSAGES", 3)
    chats = [lmstudio(*[turn(asked(str(n))) for n in range(count)]) for count in (4, 3)]
    read, skipped = take_bytes(tmp_path, "x.json", dumps(chats))
    assert ([len(conversation.messages) for conversation in read], len(skipped)) == ([3], 1)
    monkeypatch.setattr(source, "MAX_SKIPPED", 10)
    _, skipped = take_bytes(tmp_path, "x.json", dumps([{"mapping": {}}] * 1000))
    assert len(skipped) == 12 and "too much in it" in skipped[-1].reason


GOOD_ZIP = zipped({"conversations.json": dumps([bridges(), bridges("two")]), "file_1.png": png()})
GOOD_DATABASE = talks.llm_threads(talks.BRANCHED)


@pytest.mark.parametrize(("name", "good"), [("x.zip", GOOD_ZIP), ("x.db", GOOD_DATABASE)])
@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_file_with_changed_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, good: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(good)
    for place, byte in changes:
        data[place % len(data)] = byte
    with contextlib.suppress(Unreadable):
        assert any(take_bytes(tmp_path_factory.getbasetemp(), name, bytes(data)))


# ---- finding LM Studio


def test_lmstudio_is_found_by_its_pointer_and_in_its_old_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert conversation_folders() == []
    new, old, moved = tmp_path / "me/.lmstudio", tmp_path / "me/.cache/lm-studio", tmp_path / "disk/studio"
    for home in (new, old, moved):
        (home / "conversations").mkdir(parents=True)
    pointer = tmp_path / "me" / ".lmstudio-home-pointer"
    for content, homes in (
        (b"", [new, old]),
        (bytes(moved) + b"\n", [moved, new, old]),
        (bytes(new), [new, old]),
        (b"\xff", [new, old]),
    ):
        pointer.write_bytes(content)
        assert conversation_folders() == [home / "conversations" for home in homes]
