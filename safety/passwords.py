"""The rules for the names and passwords of accounts."""

import functools
import hashlib
import re
import unicodedata
from importlib import resources

from ..errors import Invalid

NAME_LENGTH = 64
INVISIBLE_LETTERS = "\u115f\u1160"  # Hangul fillers; NFKC replaces the other two by the second
PASSWORD_LENGTH = (12, 256)

_COMMON_WORDS = re.compile(
    r"(?:password|passw0rd|p@ssw0rd|qwerty(?:uiop)?|letmein|welcome|iloveyou|admin|administrator|changeme|default|secret|"
    r"fireside|football|baseball|superman|batman|dragon|monkey|sunshine|princess|trustno|master|shadow|michael|jordan|"
    r"liverpool|starwars|whatever|computer|internet|hello|login|abc|asdf|zxcv|1q2w3e4r|qazwsx|correcthorsebatterystaple|"
    r"[0-9!@#$%^&*._-])+"
)


def clean_username(name: str) -> str:
    """Return the form in which a name is compared: "Änna  Smith" and "änna smith" are one name. Raises Invalid."""
    username = casefold(name)
    visible = all((c.isalnum() and c not in INVISIBLE_LETTERS) or c in " ._-'" for c in username)
    if not visible or not 1 <= len(username) <= NAME_LENGTH:
        raise Invalid(
            f"The name must be 1 to {NAME_LENGTH} letters, digits, spaces, dots, hyphens, underscores or apostrophes."
        )
    return username


def display_name(name: str) -> str:
    """Return a name as typed, without unusual forms of its characters and without superfluous spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).replace("\u2019", "'").split())


def casefold(name: str) -> str:
    return display_name(name).casefold()


def check_new_name(name: str, password: str, password_field: str = "password") -> str:
    """Return the name in the form in which it is compared. Raises Invalid for a weak password and for a name that mixes scripts
    whose letters look alike. Existing names that mix scripts stay valid."""
    username = clean_username(name)
    if len({unicodedata.name(c, "").partition(" ")[0] for c in username} & {"LATIN", "GREEK", "CYRILLIC"}) > 1:
        raise Invalid("The name must not mix Latin, Greek and Cyrillic letters.")
    check_password(password, username, password_field)
    return username


def check_password(password: str, username: str, field: str = "password") -> None:
    """Raise Invalid for a password that is too short, too long, a common one, or little more than the user name."""
    low, high = PASSWORD_LENGTH
    if not low <= len(password) <= high:
        raise Invalid(f"{field} must have {low} to {high} characters.")
    folded = password.casefold()
    without_name = folded
    for name in (username, username.replace(" ", "")):
        without_name = without_name.replace(name, "") if len(name) >= 3 else without_name
    hashed = hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()[:10]
    if len(without_name) < 6 or _COMMON_WORDS.fullmatch(without_name) or hashed in _common_passwords():
        raise Invalid(f"{field} is too easy to guess. Choose a few unrelated words.")


@functools.cache
def _common_passwords() -> frozenset[str]:
    lines = resources.files("fireside").joinpath("passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
