"""README.md and docs/: snippets run, commands and links exist, tables agree with the code."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from robometer_gym.cli.main import main
from robometer_gym.tracking.settings import RewardSettings
from tests.paths import ROOT
from tests.test_layout import FLOORS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# The first line of a snippet states what it needs beyond the development install.
COMPILED_ONLY = ("the 4B weights", "a GPU")
ROBOTS = "gymnasium-robotics and EGL"

# Numbers that take minutes on a page are replaced by small ones.
SHORT = {
    "agent.learn(60_000": "agent.learn(512",
    "episodes=20": "episodes=2",
    "max_steps=500": "max_steps=2",
}


class Snippet(NamedTuple):
    """A fenced block: its language, its text, and the line of the page on which it begins."""

    language: str
    text: str
    line: int

    @property
    def needs(self) -> str:
        """Its first line "# Needs ...", or nothing."""
        first = self.text.partition("\n")[0]
        return first if first.startswith("# Needs ") else ""

    def compile(self, page: Path) -> Any:
        """Compile it, with the line numbers of the page for tracebacks."""
        text = self.text
        for long, short in SHORT.items():
            text = text.replace(long, short)
        return compile("\n" * self.line + text, str(page), "exec")


def snippets(page: Path, *languages: str) -> Iterator[Snippet]:
    """Yield the fenced blocks of a page that are in one of these languages."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield Snippet(found[1], found[2], text.count("\n", 0, found.start(2)))


def commands(page: Path) -> Iterator[str]:
    """Yield the shell commands of a page, one line each, without comments."""
    for snippet in snippets(page, "sh"):
        for line in snippet.text.replace("\\\n", " ").splitlines():
            if command := line.partition(" #")[0].strip():
                yield command


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@each_page
def test_python_snippets_run(page, tmp_path, monkeypatch):
    """A reader would copy code that ends in a traceback. The snippets of a page run in order."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page, "python"):
        code = snippet.compile(page)
        if not snippet.needs:
            exec(code, names)
        elif ROBOTS not in snippet.needs:
            assert any(need in snippet.needs for need in COMPILED_ONLY), snippet.needs


ROBOT_SNIPPETS = [
    pytest.param(page, snippet, id=f"{page.stem}-{snippet.line}")
    for page in PAGES
    for snippet in snippets(page, "python")
    if ROBOTS in snippet.needs
]


@pytest.mark.parametrize(("page", "snippet"), ROBOT_SNIPPETS)
def test_robot_snippets_run(page, snippet, tmp_path):
    """The owner of a robot would copy code that ends in a traceback, or in a crash of MuJoCo."""
    for package in ("gymnasium_robotics", "mujoco"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install -e '.[robots]'")
    environment = {
        **os.environ,
        "MUJOCO_GL": "egl",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    opengl = [sys.executable, "-c", "import mujoco; mujoco.GLContext(64, 64).free()"]
    if subprocess.run(opengl, capture_output=True, env=environment, timeout=600).returncode:
        pytest.skip("needs OpenGL without a display: apt-get install libegl1 libgl1")
    script = tmp_path / "snippet.py"
    script.write_text(snippet.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=1800,
    )
    assert done.returncode == 0, f"{page}, line {snippet.line}:\n{done.stderr}"


@each_page
def test_commands_exist(page, capsys):
    """A reader would copy a command or a flag that is refused."""
    for command in commands(page):
        program, *words = command.split()
        flags = {word for word in words if word.startswith("--")}
        if match := re.search(r"robometer[-_]gym (\w+)", command):
            with pytest.raises(SystemExit) as ended:
                main([match[1], "--help"])
            assert ended.value.code == 0, command
            known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
            assert flags <= known, f"{command}: {flags - known}"
        elif program == "make":
            assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(), command
        elif program == "python":
            source = (ROOT / words[0]).read_text()
            assert all(f'"{flag}"' in source for flag in flags), command
        elif program == "pip":
            extras = re.findall(r"[\w-]+", command.partition("[")[2].partition("]")[0])
            pyproject = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in pyproject for extra in extras), command
        else:
            assert program in ("apt-get", "hf", "source", "git"), command


def test_flags_in_the_text_exist(capsys):
    """A reader would try a flag that is refused."""
    known = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py"))
    for command in ("demo", "score", "eval", "train", "serve"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    for page in PAGES:
        for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for flag in re.findall(r"(?<![\w-])--[\w-]+", span):
                assert flag in known, f"{page.name}: {flag}"


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.stem
)
def test_links_lead_somewhere(page):
    """A reader would end on a missing page, file or heading."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_paths_in_code_spans_exist():
    """A reader would look for a file that has moved."""
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(
            r"`(?:python |pytest )?((?:tests|examples|benchmarks|docs)/[^` ]+)", text
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_table_of_settings_is_that_of_the_code():
    """A reader would count on a default that is another, or miss a setting."""
    text = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", text, re.MULTILINE))
    for field in fields(RewardSettings):
        assert field.default is not MISSING
        assert rows[field.name] == repr(field.default).replace("'", '"')


def test_the_table_of_extras_is_that_of_the_package():
    """A reader would install an extra that does not exist, or miss one."""
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = pyproject.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(
        re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    ) - {"dev"}


def test_every_page_is_in_both_indexes():
    """A page would be found by nothing but a listing of the folder."""
    for page in PAGES[1:]:
        for index, link in (
            (PAGES[0], f"(docs/{page.name})"),
            (ROOT / "docs/README.md", f"({page.name})"),
        ):
            assert page.stem == "README" or link in index.read_text(encoding="utf-8"), page.name


def test_every_shortened_number_is_on_a_page():
    """A number that was changed on its page would make the tests take minutes."""
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(long in pages for long in SHORT)


def test_the_front_page_is_short():
    """A visitor would not reach the end of it."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_layout_table_is_that_of_the_layout_test():
    """A contributor would put a module where its imports are refused."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `([\w/]+)` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert [room.replace("/", ".") for room in rooms] == [
        floor for floor in FLOORS if floor and not floor.startswith("_")
    ]
