"""JSON that other programs wrote. Any field may be missing or have any type, so each accessor returns an empty value for a wrong one."""

import json
import math
from typing import Any

import msgspec

SMALL_BYTES = 64 * 1024  # decoding without types blocks the event loop for up to 0.15 s per MiB


def decode(data: bytes) -> Any:
    """Decode JSON, also with control characters in strings. Invalid UTF-8 becomes U+FFFD, a number that is not finite None.

    Halves of surrogate pairs stay in the strings; `text` replaces them. Raises ValueError.
    """
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(
            data.decode("utf-8", "replace"), strict=False, parse_float=_finite, parse_constant=lambda _: None
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:
        raise ValueError("is not valid JSON") from None


def decode_small(data: bytes) -> Any:
    """Decode JSON as `decode` does. Return None for what is not JSON or has over SMALL_BYTES."""
    try:
        return decode(data) if len(data) <= SMALL_BYTES else None
    except ValueError:
        return None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def at(value: Any, *path: str) -> Any:
    """Return the value at this path of names through nested objects, or None."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def object_at(value: Any, *path: str) -> dict[str, Any]:
    found = at(value, *path)
    return found if isinstance(found, dict) else {}


def array_at(value: Any, *path: str) -> list[Any]:
    found = at(value, *path)
    return found if isinstance(found, list) else []


def objects_at(value: Any, *path: str) -> list[dict[str, Any]]:
    """Return the array at this path, with {} for each element that is not an object."""
    return [element if isinstance(element, dict) else {} for element in array_at(value, *path)]


def text_at(value: Any, *path: str) -> str:
    """Return the string at this path as `clean` makes it, or "" when there is none."""
    found = at(value, *path)
    return clean(found) if isinstance(found, str) else ""


def number_at(value: Any, *path: str) -> float | None:
    """Return the number at this path when it is not negative and finite, or None."""
    found = at(value, *path)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= 2**63:
        return None
    return float(found)


def count_at(value: Any, *path: str) -> int | None:
    """Return the number at this path as an int up to 2**53, or None."""
    number = number_at(value, *path)
    return int(number) if number is not None and number <= 2**53 else None


def boolean_at(value: Any, *path: str) -> bool | None:
    found = at(value, *path)
    return found if isinstance(found, bool) else None


def clean(text: str) -> str:
    """Replace what SQLite or UTF-8 cannot take: NUL and halves of surrogate pairs become U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
