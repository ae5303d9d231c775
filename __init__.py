"""Fireside keeps your conversations with the models that run on your own computer."""

__version__ = "0.2.0"
