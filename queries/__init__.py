"""Every SQL statement, a function each, in a module per noun."""

from . import (
    accounts,
    bin,
    branches,
    conversations,
    folders,
    generations,
    messages,
    prompts,
    queued,
    recorder,
    search,
    tokens,
    usage,
)

__all__ = [
    "accounts",
    "bin",
    "branches",
    "conversations",
    "folders",
    "generations",
    "messages",
    "prompts",
    "queued",
    "recorder",
    "search",
    "tokens",
    "usage",
]
