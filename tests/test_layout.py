"""The layout: which room may import which, two halves that meet in one seam, and lazy names.

`python -m tests.test_layout` prints the import graph between rooms, lowest floor first.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robometer_gym
from tests.paths import ROOT

PACKAGE = Path(robometer_gym.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A room may import itself and the rooms before it, never one after it.
FLOORS = (
    "_lazy",
    "",  # the package itself: its names are lazy, modules below read its version
    "validation",
    "reward_model",
    "testing",
    "tracking",
    "data",
    "envs",
    "models.robometer.network",
    "models.robometer.engine",
    "models.robometer",
    "models",
    "serve",
    "wrappers",
    "evaluation",
    "sb3",
    "training",
    "cli",
    "__main__",
)
TORCH = ("models.robometer.network", "models.robometer.engine", "models.robometer", "training")
MODEL_LIBRARIES = ("torch", "torchvision", "transformers", "safetensors", "huggingface_hub")
ENV_LIBRARIES = ("gymnasium", "stable_baselines3")


def room(module: str) -> str:
    """The longest prefix of a module's name that is a room: "models" for ...models.loading."""
    name = module.removeprefix("robometer_gym").removeprefix(".")
    return max((r for r in FLOORS if name == r or name.startswith(f"{r}.")), key=len, default="")


class _Imports(ast.NodeVisitor):
    """What a module imports at any time, apart from imports for type checkers alone."""

    def __init__(self, path: Path) -> None:
        self.names: set[str] = set()
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_If(self, node: ast.If) -> None:
        if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "relative imports hide where a name comes from"
        source = node.module or ""
        inner = {f"{source}.{alias.name}" for alias in node.names}
        self.names |= {name for name in inner if name in MODULES} or {source}


IMPORTS = {module: _Imports(path).names for module, path in MODULES.items()}


def arrows() -> dict[tuple[str, str], int]:
    """Count imports from one room to another."""
    counts: dict[tuple[str, str], int] = {}
    for module, names in IMPORTS.items():
        for name in names:
            if name.split(".")[0] == "robometer_gym" and room(name) != room(module):
                pair = room(module), room(name)
                counts[pair] = counts.get(pair, 0) + 1
    return counts


def test_every_module_has_a_room():
    """A new folder would stand outside the rules below."""
    top = {module.split(".")[1] for module in MODULES if "." in module}
    assert top <= {name.split(".")[0] for name in FLOORS}


def test_no_import_runs_upwards():
    """Rooms that need each other cannot be read, tested or replaced alone."""
    upwards = [
        f"{source} -> {target}"
        for source, target in arrows()
        if FLOORS.index(target) > FLOORS.index(source)
    ]
    assert not upwards


def test_modules_do_not_import_each_other_in_a_circle():
    """Which of them is imported first would decide whether the import works."""
    graph = {module: IMPORTS[module] & MODULES.keys() for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in graph[module] - {"robometer_gym"}:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_libraries_of_its_half(module):
    """A worker process would load torch, or a reward server a simulator."""
    libraries = {name.split(".")[0] for name in IMPORTS[module]}
    if room(module) in TORCH:
        assert not libraries & set(ENV_LIBRARIES)
    elif room(module) != "cli":
        assert not libraries & set(MODEL_LIBRARIES)
    if room(module) in ("validation", "reward_model", "tracking", "models", "serve"):
        assert not libraries & set(ENV_LIBRARIES)


def run_without(libraries: tuple[str, ...], program: str) -> None:
    """Run a program in a process in which some libraries cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({libraries!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_the_environment_half_runs_without_torch():
    """Every worker of a vector env would take seconds to start and hold gigabytes of torch."""
    run_without(
        (*MODEL_LIBRARIES, "matplotlib", "stable_baselines3"),
        """
import gymnasium as gym
from robometer_gym import RobometerRewardWrapper, make_robometer_vec
from robometer_gym.testing import CountingEnv, ScriptedRewardModel

tabletop = gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array")
for env in (CountingEnv(lengths=[3]), tabletop):
    env = RobometerRewardWrapper(env, task="open the drawer", reward_model=ScriptedRewardModel())
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
RobometerRewardWrapper(CountingEnv(), task="open the drawer")  # a name: loaded at the first reset
envs = make_robometer_vec(CountingEnv, "open the drawer", 2, ScriptedRewardModel())
envs.reset(seed=0)
envs.step([0, 0])
envs.close()
dir(__import__("robometer_gym"))
""",
    )


def test_the_model_half_runs_without_gymnasium():
    """A reward server would need a simulator's libraries."""
    run_without(
        ENV_LIBRARIES,
        """
import numpy as np
from robometer_gym import Clip, LazyRewardModel, RobometerRewardModel
import robometer_gym.training
from robometer_gym.training import Sampler, train

clip = Clip(np.zeros((2, 32, 32, 3), np.uint8) + 9, "open the drawer")
(prediction,) = RobometerRewardModel.from_pretrained("demo").predict([clip])
assert prediction.progress.shape == (2,)
(same,) = LazyRewardModel("demo").predict([clip])
np.testing.assert_allclose(same.progress, prediction.progress, rtol=0, atol=1e-6)
""",
    )


def test_the_seam_runs_without_either():
    """A client of a reward server needs numpy, and nothing else of ours or theirs."""
    run_without(
        (*ENV_LIBRARIES, *MODEL_LIBRARIES),
        """
import robometer_gym.models.loading
import robometer_gym.tracking.tracker
import robometer_gym.tracking.trace
from robometer_gym import Clip, LazyRewardModel, Prediction, RewardModel
""",
    )


@pytest.mark.parametrize("module", ["labels", "augmentation"])
def test_training_data_needs_neither_torch_nor_peft(module):
    """Labels could not be looked at where nothing is trained."""
    run_without(
        (*MODEL_LIBRARIES, *ENV_LIBRARIES, "peft", "accelerate"),
        f"import robometer_gym.training.{module}",
    )


@pytest.mark.parametrize("package", ["", ".evaluation", ".training"])
def test_lazy_names_are_those_of_all(package):
    """A name would be offered that is not there, or be used that is not promised."""
    module = __import__(f"robometer_gym{package}", fromlist=["__all__"])
    assert sorted(module.__all__) == module.__all__
    assert sorted({*dir(module), "__version__"} if not package else dir(module)) == module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    """`hasattr` and autocompletion would fail in their own ways."""
    with pytest.raises(
        AttributeError, match="module 'robometer_gym' has no attribute 'RobometerX'"
    ):
        _ = robometer_gym.RobometerX


def test_the_version_is_that_of_the_package():
    """A bug report would name the wrong version."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{robometer_gym.__version__}"' in pyproject


if __name__ == "__main__":
    _counts = arrows()
    for _room in FLOORS:
        _down = ", ".join(
            f"{target or 'robometer_gym'} ({_counts[_room, target]})"
            for target in FLOORS
            if (_room, target) in _counts
        )
        print(f"{_room or 'robometer_gym':<26} {_down or '-'}")
    print(f"{len(FLOORS)} rooms, {len(_counts)} arrows, none upwards")
