"""Paths of the checkout, and of test data that is not part of it."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
"""The real tokenizer and videos; tests that need them skip where the folder is missing."""
