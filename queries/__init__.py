"""Every SQL statement, a function each, in a module per noun."""

from . import accounts, conversations, generations, messages, prompts, search

__all__ = ["accounts", "conversations", "generations", "messages", "prompts", "search"]
