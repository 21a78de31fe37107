"""The language of source, tests and pages: a deny-list of words, and headers that name a thing.

CONTRIBUTING.md states the rule. `python -m tests.test_language` counts the words by folder.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.paths import ROOT

FOLDERS = ("robometer_gym", "tests", "benchmarks", "examples", "docs")
FILES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / name for name in ("Makefile", "pyproject.toml")),
        *(
            p
            for folder in FOLDERS
            for p in (ROOT / folder).rglob("*")
            if p.suffix in (".py", ".md")
        ),
    )
    if path != Path(__file__)
)

# Speech for code, people, other spellings and private words. A trailing * takes any ending.
DENIED = (
    *("tell", "tells", "told", "telling", "say", "says", "said", "ask", "asks", "asked"),
    *("pay", "pays", "paid", "nobody", "somebody", "whoever", "his", "her"),
    *("anew", "mend", "mends", "mended", "cure", "cures", "in vain"),
    *("grey", "colour*", "behaviour*", "normalis*", "quantis*", "optimis*", "initialis*"),
    *("recognis*", "centre*", "neighbour*"),
)
# Underscores separate words in a name as spaces do, so `_told_success` counts as well.
WORDS = "|".join(DENIED).replace("*", "[a-z]*")
PATTERN = re.compile(rf"(?<![A-Za-z])(?:{WORDS})(?![A-Za-z])", re.IGNORECASE)

ALLOWED = ("HER",)  # Hindsight Experience Replay, in capitals
HEADER = re.compile(r"(?:What|Which|When|Where|How|From)\b")


class Hit(NamedTuple):
    """One denied word."""

    folder: str
    place: str
    word: str


def hits() -> Iterator[Hit]:
    """Find the denied words of all files."""
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in PATTERN.finditer(line):
                if found[0] not in ALLOWED:
                    name = path.relative_to(ROOT)
                    yield Hit(folder_of(name), f"{name}:{number}", found[0])


def folder_of(name: Path) -> str:
    """Return the folder that a file counts for: two levels, as `robometer_gym/data`."""
    return "/".join(name.parent.parts[:2]) or name.name


def headers() -> Iterator[tuple[str, str]]:
    """Yield the place and first line of every module docstring, and of every page's headings."""
    for path in FILES:
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        if path.suffix == ".py":
            yield str(name), ast.get_docstring(ast.parse(text)) or ""
        elif path.suffix == ".md":
            without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
            for heading in re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE):
                yield str(name), heading


def test_no_denied_word_is_used():
    """A reader would have to learn a private dialect before the code."""
    found = list(hits())
    counts = Counter(hit.folder for hit in found)
    listed = "\n".join(f"{hit.place}: {hit.word}" for hit in found)
    assert not found, f"{len(found)} words, by folder {dict(counts)}\n{listed}"


def test_headers_name_the_thing():
    """A listing of headers would consist of clauses, and no module could be found by its job."""
    clauses = [f"{name}: {text.splitlines()[0]}" for name, text in headers() if HEADER.match(text)]
    assert not clauses, "\n".join(clauses)


@pytest.mark.parametrize("word", [word.replace("*", "") for word in DENIED])
def test_the_pattern_finds_a_denied_word(word):
    """A mistake in the pattern would let everything through."""
    assert all(PATTERN.search(text) for text in (f"it {word}.", word.upper(), f"_{word}_x"))
    assert not PATTERN.search(f"x{word}")


if __name__ == "__main__":
    for _folder, _count in sorted(Counter(hit.folder for hit in hits()).items()):
        print(f"{_count:>5}  {_folder}")
    for _name, _text in headers():
        if HEADER.match(_text):
            print(f"       {_name}: {_text.splitlines()[0]}")
    sys.exit(0)
