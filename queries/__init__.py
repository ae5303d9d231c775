"""Every SQL statement, a function each, in a module per noun.

The first parameter of every query is the connection of an open transaction: run them through Database.write or Database.read, alone or
several in one function. Ids are integers below 2**63; texts hold no NUL and no lone surrogates.
"""

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
    turns,
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
    "turns",
    "usage",
]
