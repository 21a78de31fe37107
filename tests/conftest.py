"""Hypothesis draws the same examples on every machine, and leaves no files behind."""

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")
