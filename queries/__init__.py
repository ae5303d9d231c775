"""Every SQL statement, a function each, in a module per noun."""

from . import (
    accounts,
    attachments,
    bin,
    branches,
    conversations,
    documents,
    folders,
    generations,
    messages,
    prompts,
    queued,
    quota,
    recorder,
    search,
    tokens,
    usage,
)

__all__ = [
    "accounts",
    "attachments",
    "bin",
    "branches",
    "conversations",
    "documents",
    "folders",
    "generations",
    "messages",
    "prompts",
    "queued",
    "quota",
    "recorder",
    "search",
    "tokens",
    "usage",
]
