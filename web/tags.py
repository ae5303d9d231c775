"""The elements and attributes that a rendered message may have: those in static/tags.js, which the page reads too."""

import json
import re
from importlib import resources

_ALLOWED = json.loads(
    re.findall(r"(?s)\{.*\}", resources.files("fireside").joinpath("static/tags.js").read_text("utf-8"))[0]
)
MATHML, MATHML_ATTRIBUTES = frozenset(_ALLOWED["mathml"]), frozenset(_ALLOWED["mathmlAttributes"])
TAGS: dict[str, frozenset[str]] = {
    **{tag: frozenset(attributes) for tag, attributes in _ALLOWED["html"].items()},
    **dict.fromkeys(MATHML, MATHML_ATTRIBUTES),
}
