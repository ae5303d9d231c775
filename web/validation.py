"""Messages for requests that are not valid. msgspec finds what is wrong; its own text never reaches a response."""

import re
from typing import Any

import msgspec
from msgspec import inspect

from .schemas import PATTERNS

TYPES = {
    "array": "a list",
    "bool": "true or false",
    "bytes": "a string",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
}
LENGTHS = {
    ("str", ">="): "must be at least {} characters",
    ("str", "<="): "must be at most {} characters",
    ("bytes", ">="): "must be at least {} bytes",
    ("bytes", "<="): "must be at most {} bytes",
    ("array", "<="): "must have at most {} items",
}
LIMITS = {">=": "must be at least {}", "<=": "must be at most {}"}


def explain(error: Exception, kind: Any) -> str:
    """Return the message for what msgspec, or the JSON parser, found wrong with a value of the type `kind`."""
    what, _, path = str(error).partition(" - at `$")
    field = path.strip("`.").replace("[...]", "")  # msgspec's name for any key of a dict
    if not isinstance(error, msgspec.ValidationError):
        place = re.search(r"\(byte (\d+)\)", what)
        return f"The request body is not valid JSON{f' at byte {place[1]}' if place else ''}."
    if error.__cause__ is not None:  # raised by the type itself, and begins with the field
        return f"{_join(field, str(error.__cause__))}."
    if match := re.match(r"Object (missing required|contains unknown) field `(.*)`", what, re.DOTALL):
        problem = "is missing" if match[1] == "missing required" else "is not a known field"
        return f"{_join(field, match[2])} {problem}."
    return f"{field or 'The request body'} {_problem(what, kind, field)}."


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _problem(what: str, kind: Any, field: str) -> str:
    if match := re.match(r"Expected `([\w| ]+)`, got", what):
        *most, last = dict.fromkeys(TYPES[name] for name in match[1].split(" | "))
        return f"must be {', '.join(most)} or {last}" if most else f"must be {last}"
    if match := re.match(r"Expected `(\w+)` of length (>=|<=) (\d+)", what):
        return "must not be empty" if match[3] == "1" else LENGTHS[match[1], match[2]].format(f"{int(match[3]):,}")
    if match := re.match(r"Expected `\w+` (>=|<=) ([-\d.]+)", what):
        return LIMITS[match[1]].format(f"{int(match[2].removesuffix('.0')):,}")
    if what.startswith("Expected `str` matching regex "):
        return next(words for pattern, words in PATTERNS.items() if what.endswith(repr(pattern)))
    if "base64" in what:
        return "must be base64"
    for field_type in _types_of(kind, field):
        match field_type:
            case inspect.LiteralType(values) if what.startswith("Invalid enum value"):
                return f"must be one of: {', '.join(map(str, values))}"
            case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high) if "out of range" in what:
                return f"must be from {low:,} to {high:,}"
            case inspect.BoolType():
                return f"must be {TYPES['bool']}"
    return "has a number that is out of range"


def _types_of(kind: Any, field: str) -> list[inspect.Type]:
    """Return the types of the field at a path like `message.images[0].media_type`."""
    types = [inspect.type_info(kind)]
    for name in re.findall(r"[A-Za-z_-]+", field):
        fields = [each for struct in types for each in getattr(struct, "fields", ()) if each.encode_name == name]
        types = [kind for each in fields for kind in _alternatives(each.type)]
    return types


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """Return the types of a union, or of a list's items."""
    match kind:
        case inspect.UnionType(types):
            return [alternative for each in types for alternative in _alternatives(each)]
        case inspect.ListType(item_type):
            return _alternatives(item_type)
    return [kind]
