"""Fonts for text in any script: find an installed one, or replace the characters and warn.

Knows nothing of what the text is drawn on. Uses matplotlib's list of fonts, where it is installed.
"""

from __future__ import annotations

import logging
import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

__all__ = ["DrawableText", "find_fonts", "prepare_text"]

logger = logging.getLogger(__name__)


class DrawableText(NamedTuple):
    """Text of which a font has every character.

    Attributes:
        text: the text, or as much of it as a font has; "?" in place of other characters.
        font: file of a font; None stands for the default of the drawing library.
    """

    text: str
    font: Path | None


@cache
def prepare_text(text: str) -> DrawableText:
    """Return text that can be drawn, and the font for it; warn where characters are replaced.

    ASCII is drawn with the default font. Anything else takes the first font that has all of its
    characters, or the one that lacks fewest; the rest is replaced, an emoji by its name.

    Example:
        >>> prepare_text("open the drawer")
        DrawableText(text='open the drawer', font=None)
    """
    if text.isascii():
        return DrawableText(text, None)
    text = unicodedata.normalize("NFC", text)
    wanted = {ord(character) for character in text if not character.isspace()}
    best, lacking = None, {code for code in wanted if code > 127}
    for font in find_fonts():
        missing = wanted - _characters_of(font)
        if len(missing) < len(lacking) or best is None:
            best, lacking = font, missing
        if not missing:
            return DrawableText(text, font)
    replaced = "".join(_replace(each) if ord(each) in lacking else each for each in text)
    _warn_once("".join(map(chr, sorted(lacking))))
    return DrawableText(replaced, best)


@cache
def _warn_once(characters: str) -> None:
    logger.warning(
        "No installed font has the characters %s: '?' or a name is drawn in their place. Install "
        "one, such as fonts-noto-cjk or fonts-noto on Debian and Ubuntu.",
        characters,
    )


@cache
def find_fonts() -> tuple[Path, ...]:
    """Return the fonts that can be scaled: matplotlib's own, then the installed ones."""
    if find_spec("matplotlib") is None:
        return ()
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return (own, *sorted(map(Path, findSystemFonts())))


@cache
def _characters_of(font: Path) -> frozenset[int]:
    """Return the code points of a font; none where it cannot be drawn at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        loaded = FT2Font(str(font))
        return frozenset(loaded.get_charmap()) if loaded.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def _replace(character: str) -> str:
    if unicodedata.category(character) == "So":  # symbols: emoji
        return f"[{unicodedata.name(character, '?').lower()}]"
    return "" if unicodedata.category(character) in ("Mn", "Cf") else "?"
