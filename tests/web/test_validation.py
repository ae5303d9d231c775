"""Validation messages name the field and the limit, and contain no text of msgspec."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fireside.errors import Invalid
from fireside.server import ROUTES
from fireside.web.endpoint import decode_body, read_query
from fireside.web.schemas import PATTERNS, NewConversation, ResumeHeader
from msgspec import inspect

from ..test_server import MALFORMED, minimal_body, types, with_field
from ..test_server import fields as struct_fields

BODIES = {route.body for route in ROUTES if route.body is not None}
QUERIES = {route.query for route in ROUTES}


# A value of each JSON type.
TYPES = {
    "null": b"null", "bool": b"true", "int": b"7", "float": b"1.5", "str": b'"x"', "array": b"[]", "object": b"{}",
}  # fmt: skip
NOT_UNICODE = [b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"']


def message(body: bytes, kind: Any) -> str:
    with pytest.raises(Invalid) as failure:
        decode_body(body, kind)
    return failure.value.message


def fields(
    kind: inspect.Type, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], inspect.Type]]:
    """Yield the path and the type of everything in a request, without unions."""
    match kind:
        case inspect.UnionType(types):
            for each in types:
                yield from fields(each, path)
        case inspect.StructType(fields=members):
            yield path, kind
            for member in members:
                yield from fields(member.type, (*path, member.encode_name))
        case inspect.ListType(item_type):
            yield path, kind
            yield from fields(item_type, (*path, 0))
        case _:
            yield path, kind


def violations(kind: inspect.Type) -> Iterator[tuple[Any, str]]:
    """Yield a value for each constraint, with the message that it must have."""
    match kind:
        case inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            if low:
                yield "", "must not be empty"
            if high:
                yield "x" * (high + 1), f"must be at most {high:,} characters"
            if pattern:
                yield "\0", PATTERNS[pattern]
        case inspect.BytesType(min_length=low, max_length=high):
            assert low and high
            yield "AAAA", f"must be at least {low:,} bytes"
            yield "A" * (high // 3 * 4 + 8), f"must be at most {high:,} bytes"
            yield "?", "must be base64"
        case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high):
            assert low is not None and high is not None
            yield low - 1, f"must be at least {low:,}"
            yield high + 1, f"must be at most {high:,}"
        case inspect.ListType(item_type, max_length=high):
            if high:
                image = {"media_type": "image/png", "data": "A" * 16}
                item = {inspect.StrType: "x", inspect.IntType: 1}.get(type(item_type), image)
                yield [item] * (high + 1), f"must have at most {high:,} items"
        case inspect.LiteralType(values):
            yield "other", f"must be one of: {', '.join(map(str, values))}"


def nested(path: tuple[str | int, ...], value: Any) -> Any:
    for step in reversed(path):
        value = [value] if step == 0 else {step: value}
    return value


@pytest.mark.parametrize("kind", sorted(BODIES | QUERIES, key=str), ids=lambda kind: kind.__name__)
def test_every_constraint_of_every_field_has_a_message(kind: Any) -> None:
    for path, field in fields(inspect.type_info(kind)):
        name = "".join(f"[{step}]" if step == 0 else f".{step}" for step in path).removeprefix(".")
        for value, words in violations(field):
            assert message(json.dumps(nested(path, value)).encode(), kind) == f"{name} {words}.", value


def test_every_body_refuses_malformed_json_and_every_field_refuses_other_types() -> None:
    for body in BODIES:
        for content in MALFORMED:
            message(content, body)
        minimal = minimal_body(body)
        for field in struct_fields(body):
            name = field.encode_name
            for kind, value in TYPES.items():
                if kind not in types(field.type):
                    assert message(with_field(minimal, name, value), body).startswith(f"{name} must "), (body, name)
            for value in NOT_UNICODE:
                message(with_field(minimal, name, value), body)
            if field.required:
                others = {other: value for other, value in minimal.items() if other != name}
                assert message(json.dumps(others).encode(), body) == f"{name} is missing."


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"title": 7}, "title must be a string or null."),
        ({"pinned": 1}, "pinned must be true or false."),
        ({"settings": 7}, "settings must be an object."),
        ({"settings": {"top_k": 1.5}}, "settings.top_k must be an integer or null."),
        ({"settings": {"top_p": "1"}}, "settings.top_p must be a number or null."),
        ({"settings": {"stop": 1}}, "settings.stop must be a string, a list or null."),
        ({"settings": {"stop": [1]}}, "settings.stop[0] must be a string."),
        ({"settings": {"n": 2}}, "settings.n is not a known field."),
        ({"settings": {"response_format": {"x": "x" * 70_000}}}, "settings.response_format must have at most 64 KiB of JSON."),
        ({"message": {}}, "message.content is missing."),
        ({"message": {"content": "", "images": [{"data": 1}]}}, "message.images[0].data must be a string."),
        ([], "The request body must be an object."),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_in_words(body: Any, expected: str) -> None:
    assert message(json.dumps(body).encode(), NewConversation) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"title": x}', "The request body is not valid JSON at byte 10."),
        (b"{", "The request body is not valid JSON."),
        (b'{"title": "\xff"}', "The request body is not valid JSON."),
        (b'{"settings": {"seed": 1%b}}' % (b"0" * 5000), "settings.seed must be from -2,147,483,648 to 4,294,967,296."),
        (b'{"settings": {"top_p": 1e999}}', "settings.top_p must be from 0 to 1."),
        (
            b'{"settings": {"response_format": {"x": 1e999}}}',
            "settings.response_format has a number that is out of range.",
        ),
        (b'{"x":' * 100_000, "The request body is not valid JSON."),
    ],
)
def test_input_that_is_not_json_or_not_a_number_is_refused(body: bytes, expected: str) -> None:
    assert message(body, NewConversation) == expected


@pytest.mark.parametrize("kind", sorted(QUERIES | {ResumeHeader}, key=str), ids=lambda kind: kind.__name__)
def test_every_constraint_of_every_query_parameter_has_a_message(kind: Any) -> None:
    def refusal(name: str, text: str) -> str:
        with pytest.raises(Invalid) as failure:
            read_query({name: text}, kind)
        return failure.value.message

    for [name, *_], field in (found for found in fields(inspect.type_info(kind)) if found[0]):
        for value, words in violations(field):
            assert refusal(str(name), str(value)) == f"{name} {words}."
        match field:
            case inspect.IntType(ge=low, le=high):
                for text in ("", "x", "1.5", "null"):
                    assert refusal(str(name), text) == f"{name} must be an integer."
                assert refusal(str(name), "9" * 5000) == f"{name} must be from {low:,} to {high:,}."
            case inspect.BoolType():
                for text in ("", "2", "yes", "9" * 5000):
                    assert refusal(str(name), text) == f"{name} must be true or false."
