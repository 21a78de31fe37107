"""Colors of all plots and videos, as hexadecimal RGB. matplotlib and Pillow both read them."""

__all__ = ["DETECTED", "GRID", "INK", "MUTED", "PALE", "PAPER", "PROGRESS", "SUCCESS", "TRUE"]

PROGRESS = "#1d5fd1"
SUCCESS = "#d9660a"
DETECTED = SUCCESS  # the detector votes on the success probability
TRUE = "#3f9b60"
INK, MUTED = "#1f2933", "#667380"  # text
GRID, PALE, PAPER = "#e4e8ec", "#d6dce2", "#fafafa"
