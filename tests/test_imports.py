"""Who may import whom: two halves, one seam, and a light `import robometer_gym`."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import robometer_gym

PACKAGE = Path(robometer_gym.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODEL_HALF = ("model", "engine", "training")
WRAPPERS = ("wrapper", "vector", "sb3")


def half(module: str) -> str:
    """The first name below the package: "model" for robometer_gym.model.heads."""
    return module.split(".")[1] if "." in module else ""


def in_model_half(module: str) -> bool:
    """Whether a module may import torch."""
    return half(module) in MODEL_HALF


class Imports(ast.NodeVisitor):
    """The modules that a file imports, apart from those for type checkers alone.

    `lazily` holds those that are imported only when a function is called.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.at_once: set[str] = set()
        self.lazily: set[str] = set()
        self._depth = 0
        self.visit(ast.parse(MODULES[module].read_text()))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        raise AssertionError("nothing here is asynchronous")

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.module}: relative imports hide where a name comes from"
        source = node.module or ""
        self._add(source)
        for name in node.names:
            if f"{source}.{name.name}" in MODULES:
                self._add(f"{source}.{name.name}")

    def _add(self, name: str) -> None:
        (self.lazily if self._depth else self.at_once).add(name)

    @property
    def ours(self) -> set[str]:
        """Modules of this package, whenever they are imported."""
        everything = self.at_once | self.lazily
        return {n for n in everything if n.split(".")[0] == "robometer_gym"} - {"robometer_gym"}

    @property
    def packages(self) -> set[str]:
        """Top-level names of everything that is imported at any time."""
        return {name.split(".")[0] for name in self.at_once | self.lazily}


IMPORTS = {module: Imports(module) for module in MODULES}
ENVIRONMENT_HALF = [
    module
    for module in MODULES
    if not in_model_half(module) and half(module) not in ("cli", "evaluation", "__main__")
]

LIGHT = """
import json, sys
import robometer_gym
from robometer_gym import RobometerRewardWrapper
from robometer_gym.testing import CountingEnv, ScriptedRewardModel
import gymnasium as gym

for env in (
    CountingEnv(lengths=[3]),
    gym.make("robometer_gym/TabletopReach-v0", render_mode="rgb_array"),
):
    env = RobometerRewardWrapper(env, task="open the drawer", reward_model=ScriptedRewardModel())
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
RobometerRewardWrapper(CountingEnv(), task="open the drawer")  # the model is not loaded yet
dir(robometer_gym)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_an_environment_process_stays_light():
    """Every worker of a vector env would take seconds to start and hold gigabytes of torch."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=120,
    )
    loaded = set(json.loads(done.stdout))
    assert {"gymnasium", "numpy", "robometer_gym"} <= loaded
    heavy = {"torch", "torchvision", "transformers", "safetensors", "huggingface_hub", "matplotlib"}
    assert not loaded & heavy
    assert "stable_baselines3" not in loaded


def test_the_modules_under_test_are_there():
    """The tests below would pass because they looked at nothing."""
    for name in ("reward_model", "frames", "success", "shaping", "episode", "wrapper", "loading"):
        assert f"robometer_gym.{name}" in MODULES
    assert "robometer_gym.episode" in IMPORTS["robometer_gym.wrapper"].at_once
    assert "robometer_gym.model.predictor" in IMPORTS["robometer_gym.loading"].lazily


@pytest.mark.parametrize(
    "name", ["reward_model", "frames", "success", "shaping", "evaluation.metrics"]
)
def test_the_seam_and_the_pure_modules_know_nothing_of_ours(name):
    """They could no longer be read, tested or reused alone."""
    imports = IMPORTS[f"robometer_gym.{name}"]
    assert imports.ours <= {"robometer_gym.reward_model"} - {f"robometer_gym.{name}"}
    assert imports.packages <= {"numpy", "PIL", "robometer_gym", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", ENVIRONMENT_HALF)
def test_the_environment_half_does_not_import_the_model_half(module):
    """Wrapping an environment would import torch."""
    imports = IMPORTS[module]
    theirs = {name for name in imports.ours if in_model_half(name)}
    if module == "robometer_gym.loading":
        assert not theirs & imports.at_once
    else:
        assert not theirs
    assert not imports.packages & {"torch", "torchvision", "transformers", "safetensors"}


@pytest.mark.parametrize("module", [m for m in MODULES if in_model_half(m)])
def test_the_model_half_imports_neither_gymnasium_nor_the_environment_half(module):
    """A reward server would need a simulator's libraries."""
    imports = IMPORTS[module]
    assert not imports.packages & {"gymnasium", "stable_baselines3"}
    others = {name for name in imports.ours if not in_model_half(name)}
    seam = {"robometer_gym.reward_model"}
    if half(module) == "training":
        seam.add("robometer_gym.data.episodes")
    assert others <= seam


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_command_line(module):
    """A library would parse arguments."""
    if half(module) not in ("cli", "__main__"):
        assert not {name for name in IMPORTS[module].ours if half(name) == "cli"}


@pytest.mark.parametrize("name", [name for name in WRAPPERS if f"robometer_gym.{name}" in MODULES])
def test_the_wrappers_do_not_import_each_other(name):
    """Two of them would share a rule that the third does not have; it belongs into `episode`."""
    imports = IMPORTS[f"robometer_gym.{name}"].ours
    assert not {half(other) for other in imports} & set(WRAPPERS) - {name}


def test_all_is_what_is_public():
    """A name would be offered that is not there, or be used that is not promised."""
    assert sorted(robometer_gym.__all__) == robometer_gym.__all__
    assert dir(robometer_gym) == robometer_gym.__all__
    ours = {
        name
        for name, value in vars(robometer_gym).items()
        if str(getattr(value, "__module__", "")).startswith("robometer_gym.")
    }
    assert ours | set(robometer_gym._NEEDS_TORCH) | {"__version__"} == set(robometer_gym.__all__)


def test_what_needs_torch_comes_when_it_is_asked_for(monkeypatch):
    """`from robometer_gym import RobometerRewardModel`, as the README says, would fail."""
    predictor = ModuleType("robometer_gym.model.predictor")
    predictor.RobometerRewardModel = "the model"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robometer_gym.model.predictor", predictor)
    assert robometer_gym.RobometerRewardModel == "the model"  # type: ignore[comparison-overlap]


def test_a_name_that_is_not_there_is_an_attribute_error():
    """`hasattr` and autocompletion would fail in their own ways."""
    with pytest.raises(
        AttributeError, match="module 'robometer_gym' has no attribute 'RobometerX'"
    ):
        _ = robometer_gym.RobometerX


def test_the_version_is_that_of_the_package():
    """A bug report would name the wrong version."""
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{robometer_gym.__version__}"' in pyproject
