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
from fireside.transfer import source
from fireside.transfer import split as splitting
from fireside.transfer.source import Skipped, Source
from fireside.transfer.split import lift, split
from fireside.transfer.transcript import Conversation, Unreadable
from hypothesis import given, settings
from hypothesis import strategies as st

from ..exports import answered, asked, block, chatgpt, dumps, lmstudio, node, openwebui, picture, png, said, turn


def rivers(question: str = "What is a river?", **fields: Any) -> dict[str, Any]:
    return lmstudio(turn(asked(question)), turn(answered(block("Water."))), **fields)


def bridges(id: str = "c0ffee") -> dict[str, Any]:
    nodes = node("q", None, "user", f"What is {id}?"), node("a", "q", "assistant", "A bridge.")
    return chatgpt(*nodes, current="a", id=id, title=f"Bridge {id}")


def take(path: Path) -> tuple[list[Conversation], list[Skipped]]:
    with contextlib.closing(Source(path)) as opened:
        found = list(opened)
        assert opened.read <= opened.size
    skipped = [item for item in found if isinstance(item, Skipped)]
    return [item for item in found if isinstance(item, Conversation)], skipped


def zipped(path: Path, **files: bytes) -> Path:
    return packed(path, files)


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


# ---- JSON, a conversation at a time


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


@given(st.lists(JSON, max_size=6), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_array_is_split_where_json_says(values: list[Any], size: int, ascii: bool, indent: int | None) -> None:
    data = json.dumps(values, ensure_ascii=ascii, indent=indent).encode()
    parts = list(split(pieces(data, size)))
    assert [json.loads(part or b"") for part in parts] == values


@given(st.dictionaries(st.text(), JSON), st.integers(1, 40))
def test_what_is_no_array_is_one_piece(value: dict[str, Any], size: int) -> None:
    (part,) = split(pieces(b"\xef\xbb\xbf " + json.dumps(value).encode(), size))
    assert json.loads(part or b"") == value


@given(st.lists(JSON, min_size=1, max_size=4), st.integers(1, 40), st.data())
def test_array_that_is_cut_off_gives_what_came_before(values: list[Any], size: int, data: st.DataObject) -> None:
    text = json.dumps(values).encode()
    parts = []
    with pytest.raises(Unreadable, match="ends in the middle"):
        for part in split(pieces(text[: data.draw(st.integers(1, len(text) - 1))], size)):
            parts.append(json.loads(part or b""))
    assert parts == values[: len(parts)]


@given(st.binary(max_size=60), st.integers(1, 40))
def test_any_bytes_are_split_or_refused(data: bytes, size: int) -> None:
    with contextlib.suppress(Unreadable):
        assert len(list(split(pieces(b"[" + data, size)))) <= len(data)


def test_what_follows_an_array_is_told() -> None:
    found = []
    with pytest.raises(Unreadable, match="more after the end"):
        for part in split(iter([b"[1]  ", b" ", b"[2]"])):
            found.append(part)
    assert found == [b"1"]


def test_too_large_a_conversation_is_passed_over_without_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "ELEMENT_BYTES", 100)
    data = b'[{"a": 1}, {"b": "' + b"x" * 1000 + b'"}, {"c": 3}]'
    for size in (7, 5000):
        parts = [part and json.loads(part) for part in split(pieces(data, size))]
        assert parts == [{"a": 1}, None, {"c": 3}]
    assert list(split(pieces(b"{" + b" " * 200 + b"}", 7))) == [None]


def picture_of(size: int) -> bytes:
    return png() + random.Random(size).randbytes(size)


@pytest.mark.parametrize("length", range(splitting.IMAGE_CHARACTERS + 30, splitting.IMAGE_CHARACTERS + 40))
def test_a_byte_order_mark_stays_in_one_piece_whatever_is_looked_for_behind_it(length: int) -> None:
    text = b"\xef\xbb\xbf[1" + b" " * (length - 6) + b"]"
    (part,) = split(lift(pieces(text, length), lambda start, end: ""))
    assert json.loads(part or b"") == 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(JSON | st.sampled_from([10, 12_200, 12_260, 12_300, 90_000]).map(picture_of), max_size=6),
    st.sampled_from([1_000, 16_000, 50_000, 10**6]),
    st.sampled_from([None, 1]),
)
def test_images_are_lifted_out_of_json_and_found_where_they_were(
    values: list[Any], size: int, indent: int | None
) -> None:
    def row(value: Any) -> dict[str, Any]:
        return {"data": base64.b64encode(value).decode() if isinstance(value, bytes) else value, "a": '"data":"x'}

    data = json.dumps([row(value) for value in values], indent=indent).encode()
    places: dict[str, slice] = {}

    def note(start: int, end: int) -> str:
        places[f"//{len(places)}"] = slice(start, end)
        return f"//{len(places) - 1}"

    lifted = b"".join(lift(pieces(data, size), note))
    rows = json.loads(lifted)
    for found in rows:
        if file := found.pop("file", None):
            assert found["data"] == ""
            found["data"] = data[places[file]].decode()
    assert rows == [row(value) for value in values]
    large = [value for value in values if isinstance(value, bytes) and len(value) > 12_288]
    assert len(places) == len(large)


def test_what_only_begins_like_an_image_is_left_out() -> None:
    data = b'[{"data": "' + b"A" * 20_000 + b'!", "b": 1}, {"data": "' + b"A" * 20_000
    lifted = b"".join(lift(pieces(data, 7_000), lambda start, end: "nothing"))
    assert lifted == b'[{"data":"!", "b": 1}, {"data":"'


# ---- files, folders and zips


def test_folder_of_lmstudio_is_walked_and_broken_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "conversations"
    (folder / "School" / "Deep").mkdir(parents=True)
    (folder / "1.conversation.json").write_bytes(dumps(rivers("one")))
    (folder / "School" / "Deep" / "2.conversation.json").write_bytes(dumps(rivers("two")))
    (folder / "School" / "3.conversation.json").write_bytes(dumps(rivers("three"))[:-40])
    (folder / "4.conversation.json").write_bytes(b"")
    (folder / "notes.json").write_bytes(b"{}")
    with contextlib.suppress(OSError):  # Windows may not allow it
        (folder / "dangling.conversation.json").symlink_to(tmp_path / "nowhere")
    read, skipped = take(folder)
    assert sorted(conversation.messages[0].content for conversation in read) == ["one", "two"]
    assert sorted(item.file for item in skipped) == ["4.conversation.json", "School/3.conversation.json"]
    assert all(item.reason.startswith("is not valid JSON") for item in skipped)


def test_identity_does_not_come_from_the_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, two = tmp_path / "1.conversation.json", tmp_path / "a" / "renamed.json"
    for path in (one, two):
        path.write_bytes(dumps(rivers()))
    assert take(one)[0] == take(two)[0]


def test_images_lie_beside_the_conversations(tmp_path: Path) -> None:
    folder = tmp_path / "conversations" / "Pets"
    folder.mkdir(parents=True)
    (tmp_path / "user-files").mkdir()
    (tmp_path / "user-files" / "17 - cat.png").write_bytes(png(7))
    (tmp_path / "user-files" / "letter.png").write_bytes(b"not an image")
    (tmp_path / "secret.png").write_bytes(png(9))
    names = ("17 - cat.png", "letter.png", "missing.png", "../secret.png", str(tmp_path / "secret.png"))
    path = folder / "1.conversation.json"
    path.write_bytes(dumps(lmstudio(turn(asked("Look", *names)))))
    for chosen in (path, folder, folder.parent):
        with contextlib.closing(Source(chosen)) as opened:
            (read,) = opened
            assert isinstance(read, Conversation)
            assert [opened.image(image.file) for image in read.messages[0].images] == [png(7)]


def test_chatgpt_zip_in_parts_with_images(tmp_path: Path) -> None:
    chat = chatgpt(
        node(
            "q",
            None,
            "user",
            picture("sediment://file_0001"),
            picture("file-service://file-Ab9"),
            kind="multimodal_text",
        ),
        node("a", "q", "assistant", picture("file-service://file-lost"), "Nice.", kind="multimodal_text"),
        current="a",
    )
    path = packed(
        tmp_path / "export.zip",
        {
            "chat.html": b"<html>",
            "user.json": b'{"id": "user-1"}',
            "message_feedback.json": b"[]",
            "__MACOSX/._conversations.json": b"\0\5",
            "conversations-000.json": dumps([bridges("one"), {"mapping": {}, "title": "Empty"}, bridges("two")]),
            "conversations-001.json": dumps([chat]),
            "user-1/file_0001-sanitized.dat": png(1),
            "file-Ab9-photo of me.png": png(2),
        },
    )
    with contextlib.closing(Source(path)) as opened:
        found = list(opened)
        assert [item.file for item in found if isinstance(item, Skipped)] == ["conversations-000.json: Empty"]
        read = [item for item in found if isinstance(item, Conversation)]
        assert [conversation.title for conversation in read] == ["Bridge one", "Bridge two", "Bridges"]
        images = [[opened.image(image.file) for image in message.images] for message in read[2].messages]
        assert images == [[png(1), png(2)], []]
        assert opened.read == opened.size


def test_any_other_zip_or_folder_gives_all_its_json(tmp_path: Path) -> None:
    row = openwebui(said("a", None, "user", "hi"), current="a")
    files = {"chats/export.json": dumps([row]), "readme.txt": b"x", "other.json": b'{"title": "Stray"}'}
    (tmp_path / "folder" / "chats").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    for path in (packed(tmp_path / "x.zip", files), tmp_path / "folder"):
        read, skipped = take(path)
        assert [conversation.title for conversation in read] == ["Boats"]
        assert [item.file for item in skipped] == ["other.json: Stray"]


def test_zip_is_known_by_its_content(tmp_path: Path) -> None:
    path = zipped(tmp_path / "upload.json", **{"conversations.json": dumps([bridges()])})
    assert len(take(path)[0]) == 1


@pytest.mark.parametrize("data", [b"PK\3\4", b"PK\5\6" + b"\0" * 18, b"PK\3\4" + b"x" * 200])
def test_zip_without_anything_in_it_is_unreadable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(data)
    with contextlib.suppress(Unreadable):
        assert take(path)[0] == []


def test_missing_file_and_empty_folder_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        Source(tmp_path / "nowhere.json")
    with pytest.raises(Unreadable, match="no conversations"):
        Source(tmp_path)


# ---- bombs


def test_entry_that_unpacks_to_too_much_is_skipped_and_the_others_go_in(tmp_path: Path) -> None:
    bomb = b'[{"mapping": {"a": "' + b" " * splitting.ELEMENT_BYTES + b'"}}]'
    files = {"conversations-000.json": bomb, "conversations-001.json": dumps([bridges()]), "photo": picture_of(500_000)}
    read, skipped = take(packed(tmp_path / "x.zip", files))
    assert len(read) == 1
    assert [(item.file, "larger than 64 MB" in item.reason) for item in skipped] == [("conversations-000.json", True)]


def test_what_repeats_itself_is_no_bomb(tmp_path: Path) -> None:
    """Small models do: such an answer packs to a thousandth."""
    answers = [turn(answered(block("one two " * 20_000))) for _ in range(20)]
    talk = lmstudio(turn(asked("Count")), *answers)
    read, skipped = take(packed(tmp_path / "x.zip", {"1.conversation.json": dumps(talk)}))
    assert (len(read), skipped) == (1, [])


def test_zip_of_many_files_that_unpack_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "ELEMENT_BYTES", 1_000_000)
    path = packed(tmp_path / "x.zip", {f"{n}.json": bytes(900_000) for n in range(4)})
    with pytest.raises(Unreadable, match="unpacks to more than 200 times its size"):
        Source(path)


def test_an_import_that_unpacks_to_too_much_in_all_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_READ_BYTES", len(dumps([bridges()])) + 1000)
    files = {f"{number}.json": dumps([bridges()]) for number in range(20)}
    (tmp_path / "folder").mkdir()
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    for path in (packed(tmp_path / "x.zip", files), tmp_path / "folder"):
        read, skipped = take(path)
        assert len(read) in (1, 2) and len(skipped) == 1
        assert "the rest was left out" in skipped[0].reason


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 2)
    (tmp_path / "folder").mkdir()
    for number in range(3):
        (tmp_path / "folder" / f"{number}.json").write_bytes(b"{}")
    for path in (packed(tmp_path / "x.zip", {f"{n}.json": b"{}" for n in range(3)}), tmp_path / "folder"):
        with pytest.raises(Unreadable, match="more than 2 files"):
            Source(path)


def test_entry_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.zip", {"conversations.json": dumps([bridges()] * 50)})
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, directory + 24, 100)  # the unpacked size in the list of files
    path.write_bytes(data)
    read, skipped = take(path)
    assert (read, len(skipped)) == ([], 1)


def test_image_above_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_IMAGE_BYTES", 1000)
    chat = chatgpt(node("q", None, "user", picture("sediment://file_1"), "?", kind="multimodal_text"), current="q")
    noise = png() + random.Random(1).randbytes(1000)
    read, _ = take(packed(tmp_path / "x.zip", {"conversations.json": dumps([chat]), "file_1.png": noise}))
    assert [message.images for message in read[0].messages] == [[]]


@pytest.mark.parametrize("data", [b"[" + b"0," * 10_000 + b"0]", b'{"chats": [' + b"0," * 10_000 + b"0]}"])
def test_file_full_of_nonsense_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(source, "MAX_SKIPPED", 10)
    path = tmp_path / "x.json"
    path.write_bytes(data)
    _, skipped = take(path)
    assert len(skipped) == 12
    assert "too much in it" in skipped[-1].reason


def test_conversation_of_too_many_messages_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_MESSAGES", 3)
    long, short = lmstudio(*[turn(asked(str(n))) for n in range(4)]), lmstudio(*[turn(asked(str(n))) for n in range(3)])
    path = tmp_path / "x.json"
    path.write_bytes(dumps([long, short]))
    read, skipped = take(path)
    assert ([len(conversation.messages) for conversation in read], len(skipped)) == ([3], 1)


def test_one_image_shown_a_thousand_times_is_refused(tmp_path: Path) -> None:
    parts = [picture("sediment://file_1")] * 1000
    chat = chatgpt(node("q", None, "user", *parts, kind="multimodal_text"), current="q")
    path = packed(tmp_path / "x.zip", {"conversations.json": dumps([chat]), "file_1.png": picture_of(100_000)})
    with contextlib.closing(Source(path)) as opened:
        (read,) = opened
        assert isinstance(read, Conversation)
        with pytest.raises(Unreadable, match="4 times"):
            for image in read.messages[0].images:
                opened.image(image.file)


def good_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", dumps([bridges(), bridges("two")]))
        archive.writestr("file_1.png", png())
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(good_zip()) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_zip_with_changed_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(good_zip())
    for place, byte in changes:
        data[place] = byte
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    path.write_bytes(data)
    try:
        read, skipped = take(path)
    except Unreadable:
        return
    assert read or skipped


# ---- finding LM Studio


def test_lmstudio_is_found_by_its_pointer_and_in_its_old_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert conversation_folders() == []
    new, old, moved = tmp_path / "me/.lmstudio", tmp_path / "me/.cache/lm-studio", tmp_path / "disk/studio"
    for home in (new, old, moved):
        (home / "conversations").mkdir(parents=True)
    assert conversation_folders() == [new / "conversations", old / "conversations"]
    (tmp_path / "me/.lmstudio-home-pointer").write_text(f"{moved}\n")
    assert conversation_folders() == [moved / "conversations", new / "conversations", old / "conversations"]
    (tmp_path / "me/.lmstudio-home-pointer").write_text(f"{new}")
    assert conversation_folders() == [new / "conversations", old / "conversations"]
    (tmp_path / "me/.lmstudio-home-pointer").write_bytes(b"\xff")
    assert conversation_folders() == [new / "conversations", old / "conversations"]
