"""Answers while they are generated."""
