"""Text in any script is drawn, or replaced with a warning; independent of installed fonts."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from robometer_gym.evaluation import fonts, plot_episodes
from robometer_gym.evaluation.fonts import prepare_text
from robometer_gym.evaluation.overlay import overlay_frames
from tests.evaluation.traces import make_trace, paint

OWN = Path(matplotlib.get_data_path(), "fonts", "ttf")
DEJAVU, ROMAN = OWN / "DejaVuSans.ttf", OWN / "cmr10.ttf"


@pytest.fixture
def installed(monkeypatch):
    """Return a function that takes the place of the list of installed fonts."""

    def install(*found: Path) -> None:
        prepare_text.cache_clear()
        fonts._warn_once.cache_clear()
        monkeypatch.setattr(fonts, "find_fonts", lambda: found)

    yield install
    prepare_text.cache_clear()
    fonts._warn_once.cache_clear()


def test_the_first_font_that_has_all_characters_is_chosen(installed, caplog):
    """A Russian task would be drawn as boxes although a font is there."""
    installed(OWN / "missing.ttf", ROMAN, DEJAVU)
    assert prepare_text("open the drawer") == ("open the drawer", None)
    assert prepare_text("открой ящик") == ("открой ящик", DEJAVU)
    assert caplog.records == []


def test_characters_without_a_font_are_replaced_and_warned_of_once(installed, caplog):
    """Boxes would be drawn, and the reader not know why."""
    installed(DEJAVU)
    assert prepare_text("打开 drawer 🤖, schön") == ("?? drawer [robot face], schön", DEJAVU)
    assert prepare_text("episode 3: 打开 🤖").text == "episode 3: ?? [robot face]"
    (record,) = caplog.records
    assert "No installed font has the characters 开打🤖" in record.message
    assert "fonts-noto-cjk" in record.message


def test_without_matplotlib_text_is_still_drawn(installed, caplog):
    """A video needs PyAV alone; an umlaut would end it."""
    installed()
    assert prepare_text("öffne die Schublade") == ("?ffne die Schublade", None)
    assert len(caplog.records) == 1


def test_every_font_that_is_found_lists_its_characters():
    """One broken font on the machine would end every plot."""
    for font in fonts.find_fonts():
        assert isinstance(fonts._characters_of(font), frozenset)


def episode(**more):
    return make_trace([0, 5], [0, 1], [0, 1], frames=paint(1), frame_steps=(0,), **more)


def title_rows(text: str) -> np.ndarray:
    (frame,) = overlay_frames(episode(task=text))
    return frame[-112:-80]


def test_other_scripts_are_seen_in_videos_and_plots(installed, tmp_path):
    """Each letter would be the same box."""
    installed(DEJAVU)
    assert (title_rows("жжжж") != title_rows("щщщщ")).any()
    plots = []
    for task in ("жжжж", "щщщщ"):
        plot_episodes([episode()], tmp_path / "plot.png", title=task)
        with Image.open(tmp_path / "plot.png") as image:
            plots.append(np.asarray(image)[:60].copy())
    assert (plots[0] != plots[1]).any()


def test_a_caption_is_cut_between_words(installed):
    """'open the draw' would be read as another task."""
    installed(DEJAVU)
    long = "open the drawer and put the red cube on the top shelf beside the"
    words = f"{long} incomprehensibilities of life".split()
    font = ImageFont.load_default(size=14)
    whole = [" ".join([*words[:count], "..."]) for count in range(len(words))]
    (longest,) = [text for text in whole if font.getlength(text) <= 384 - 12][-1:]
    assert (title_rows(" ".join(words)) == title_rows(longest)).all()
