"""robometer-gym eval: what is printed and written, which environments and policies it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from robometer_gym import read_traces
from robometer_gym.cli.env_and_policy import load_policy
from robometer_gym.cli.main import main
from robometer_gym.envs import ENV_ID, TASKS
from robometer_gym.testing import CountingEnv
from tests.paths import ROOT


def evaluate(out: Path, *more: str) -> int:
    return main(["eval", ENV_ID, "--task", TASKS[0], "--out", str(out / "out"), *more])


@pytest.fixture(scope="module")
def agents(tmp_path_factory) -> Path:
    """A folder with an untrained agent of each algorithm for TabletopReach, and one for another."""
    folder: Path = tmp_path_factory.mktemp("agents")
    for name in ("PPO", "A2C", "SAC", "TD3", "DDPG", "DQN"):
        env = "CartPole-v1" if name == "DQN" else ENV_ID
        more = {} if name in ("PPO", "A2C") else {"buffer_size": 10}
        agent = getattr(sb3, name)(
            "MlpPolicy", env, policy_kwargs={"net_arch": [4]}, device="cpu", **more
        )
        agent.save(folder / name.lower())
    return folder


def test_totals_are_printed_and_files_written(tmp_path, model, capsys):
    """A user would get no metrics, or no hint where they are."""
    model._scripts = {"progress": lambda clip: clip.steps[-1] / 100, "success": 0.9}
    more = ("--episodes", "2", "--seed", "5", "--predict-every", "10", "--model", "a/b")
    assert evaluate(tmp_path, *more, "--env-kwargs", f"task={TASKS[0]}", "layout=random") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[:2] == [
        f"{ENV_ID}: {TASKS[0]}",
        "policy random, reward model a/b",
    ]
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("      ")]
    for number, row in enumerate(rows[:2]):
        # The model detects success everywhere, at its second prediction; the environment nowhere.
        expected = [number, 0, 5 + number, 10, "+0.100", "+0.000", "0.100", 10, "no", "-"]
        assert row == [str(cell) for cell in expected]
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert (report["env"], report["policy"], report["reward_model"]) == (ENV_ID, "random", "a/b")
    assert (report["totals"]["episodes"], report["settings"]["predict_every"]) == (2, 10)
    assert report["totals"]["false_success_rate"] == 1
    assert model.names == ["a/b"]
    assert all(str(out / name) in printed.out for name in ("report.json", "report.md"))
    assert sorted(path.suffix for path in out.iterdir()) == sorted(
        [".json", ".md", ".png", ".png", ".mp4", ".mp4"]
    )


def test_settings_reach_the_reward(tmp_path, model):
    """An option would be accepted and ignored."""
    more = ("--frame-size", "32", "--max-frames", "2", "--sampling", "tail", "--scale", "3")
    assert evaluate(tmp_path, "--episodes", "1", *more) == 0
    assert model.clips[-1].images[-1].shape == (32, 32, 3)
    assert model.clips[-1].steps == (95, 100)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["scale"] == 3


def test_traces_are_written(tmp_path, model):
    """An evaluation of hours could not be replayed with another threshold."""
    more = ("--traces", str(tmp_path / "traces.jsonl"), "--episodes", "2", "--seed", "5")
    assert evaluate(tmp_path, *more) == 0
    traces = read_traces(tmp_path / "traces.jsonl")
    assert [(trace.seed, trace.num_steps, trace.fps) for trace in traces] == [
        (5, 100, 20),
        (6, 100, 20),
    ]
    assert traces[0].task == TASKS[0]


def test_another_task_is_warned_of(tmp_path, model, capsys):
    """The detector would be compared with another success than the one that it looks for."""
    model._scripts["success"] = 0.9
    other = json.dumps({"task": TASKS[1]})
    assert evaluate(tmp_path, "--episodes", "2", "--env-kwargs", other) == 0
    err = capsys.readouterr().err
    assert f"own task is '{TASKS[1]}', and the model reads '{TASKS[0]}'" in err
    assert err.count("own task") == 1
    assert evaluate(tmp_path, "--episodes", "1", "--env-kwargs", f"task={TASKS[0]}") == 0
    assert "own task" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3", "ddpg"])
def test_a_saved_agent_of_any_algorithm_acts(tmp_path, model, agents, name):
    """A user who trained with SAC could not evaluate, or would see another agent act."""
    env = gym.make(ENV_ID)
    observation, _ = env.reset(seed=0)
    agent = getattr(sb3, name.upper()).load(agents / name, device="cpu")
    actions = agent.predict(observation, deterministic=True)[0]
    for text in (f"sb3:{name}:{agents / name}", f"sb3:{name.upper()}:{agents / name}.zip"):
        loaded = load_policy(text, env)
        again = loaded.predict(observation, deterministic=True)[0]
        np.testing.assert_allclose(again, actions, rtol=0, atol=1e-5)
        assert isinstance(loaded, type(agent))
    model._scripts["success"] = 0.9
    policy = f"sb3:{name}:{agents / name}.zip"
    assert evaluate(tmp_path, "--episodes", "1", "--policy", policy) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["policy"] == policy


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--task", " "), "task must describe what the robot should do"),
        (("--policy", "expert"), "policy must be 'random' or 'sb3:ALGORITHM:PATH', as in"),
        (("--policy", "sb3:"), "policy must be 'random' or 'sb3:ALGORITHM:PATH', as in"),
        (("--policy", "sb3:ppo"), "policy must be 'random' or 'sb3:ALGORITHM:PATH', as in"),
        (("--policy", "sb3:{}/ppo.zip"), "policy must be 'random' or 'sb3:ALGORITHM:PATH', as in"),
        (("--policy", "sb3:ppo:{}/none"), "There is no saved policy {}/none: give the .zip"),
        (("--policy", "sb3:tqc:{}/ppo"), "must be one of a2c, ddpg, dqn, ppo, sac, td3, got 'tqc'"),
        (("--policy", "sb3:ppo:{}/text.zip"), "text.zip cannot be loaded as a PPO: "),
        (("--policy", "sb3:sac:{}/ppo"), "ppo.zip cannot be loaded as a SAC: "),
        (("--policy", "sb3:dqn:{}/dqn"), "dqn.zip was saved for another environment: "),
        (("--env-kwargs", "layout"), "--env-kwargs must be KEY=VALUE or a JSON object, got"),
        (("--env-kwargs", "[1]"), "--env-kwargs must be KEY=VALUE or a JSON object, got"),
        (("--env-kwargs", "speed=3"), "got an unexpected keyword argument 'speed'"),
        (("--env-kwargs", "layout=round"), "layout must be 'fixed' or 'random', got 'round'."),
        (("--env-kwargs", "render_mode=null"), "needs an env made with render_mode='rgb_array'"),
        (("--camera", "wrist"), "wrist"),
        (("--gamma", "2"), "gamma must be in [0, 1], got 2.0."),
    ],
)
def test_a_mistake_is_one_line_and_comes_before_the_model(
    tmp_path, model, agents, capsys, more, message
):
    """A typo would cost minutes of loading, and end in a page of traceback."""
    (agents / "text.zip").write_text("no zip")
    assert evaluate(tmp_path, *(text.replace("{}", str(agents)) for text in more)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("robometer-gym: error: ")
    assert message.replace("{}", str(agents)) in printed.err
    assert printed.err.count("\n") == 1
    assert model.names == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Nowhere-v0", "Environment `Nowhere` doesn't exist"),
        ("no_such_package:Drawer-v0", "No module named 'no_such_package'"),
    ],
)
def test_an_unknown_environment_is_named(env, message, model, tmp_path, capsys):
    """The user would not learn how an environment of another package is written."""
    assert main(["eval", env, "--task", "open", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "is written module:Id" in err


def test_the_module_of_an_environment_is_imported(tmp_path, model, monkeypatch):
    """An environment of one's own could be evaluated from Python only."""
    (tmp_path / "my_drawers.py").write_text(
        "import gymnasium as gym\ngym.register('Drawer-v0', 'robometer_gym.testing:CountingEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    drawer = "my_drawers:Drawer-v0"
    more = ("--env-kwargs", "lengths=[3]", "success=[true]", "--episodes", "2")
    assert main(["eval", drawer, "--task", "open", "--out", str(tmp_path / "out"), *more]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [episode["true_success_step"] for episode in report["episodes"]] == [3, 3]


def test_without_sb3_the_error_names_the_extra(tmp_path, model, agents, monkeypatch, capsys):
    """A newcomer would see a traceback in place of the pip command."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert evaluate(tmp_path, "--policy", f"sb3:ppo:{agents / 'ppo'}") == 2
    assert "pip install 'robometer-gym[sb3]'" in capsys.readouterr().err


# --- agents that do not fit, and normalized observations ---


def check_refused(env, agent, tmp_path) -> str:
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"agent.zip was saved for another environment") as refused:
        load_policy(f"sb3:ppo:{tmp_path / 'agent'}", env)
    return str(refused.value)


def ppo(env):
    several = isinstance(env.observation_space, gym.spaces.Dict)
    kind = "MultiInputPolicy" if several else "MlpPolicy"
    return sb3.PPO(kind, env, n_steps=8, batch_size=8, device="cpu")


def test_an_agent_for_other_observations_is_refused(tmp_path):
    """It would end in an IndexError, or act on the wrong numbers."""
    tabletop, counting = gym.make(ENV_ID), CountingEnv()
    assert "observations" in check_refused(tabletop, ppo(counting), tmp_path)
    seeing = CountingEnv(cameras=["wrist"], size=(40, 40))
    check_refused(counting, ppo(seeing), tmp_path)
    check_refused(seeing, ppo(counting), tmp_path)
    other_camera = CountingEnv(cameras=["scene"], size=(40, 40))
    check_refused(seeing, ppo(other_camera), tmp_path)
    same = CountingEnv(lengths=[3])
    ppo(counting).save(tmp_path / "same")
    assert load_policy(f"sb3:ppo:{tmp_path / 'same'}", same).predict(np.zeros(1))[0].shape == ()


def test_an_agent_for_images_fits_its_environment(tmp_path):
    """Stable-Baselines3 saves image spaces channels first: every such agent would be refused."""
    env = gym.wrappers.TransformObservation(
        gym.make(ENV_ID, render_mode="rgb_array"),
        lambda observation: np.zeros((64, 64, 3), np.uint8),
        gym.spaces.Box(0, 255, (64, 64, 3), np.uint8),
    )
    agent = sb3.PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu")
    agent.save(tmp_path / "agent")
    policy = load_policy(f"sb3:ppo:{tmp_path / 'agent'}", env)
    assert policy.predict(env.reset()[0])[0].shape == (2,)


def test_an_agent_of_normalized_observations_acts_on_them(tmp_path, model):
    """It would act on raw observations, and look as bad as chance."""
    venv = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]))
    agent = ppo(venv)
    agent.learn(64)
    agent.save(tmp_path / "agent")
    venv.save(str(tmp_path / "normalizer.pkl"))
    env = gym.make(ENV_ID)
    observation, _ = env.reset(seed=0)
    venv.training = False
    expected = agent.predict(venv.normalize_obs(observation), deterministic=True)[0]
    raw = agent.predict(observation, deterministic=True)[0]
    policy = load_policy(f"sb3:ppo:{tmp_path / 'agent'}", env, tmp_path / "normalizer.pkl")
    action = policy.predict(observation, state=None, episode_start=None, deterministic=True)[0]
    assert np.allclose(action, expected)
    assert not np.allclose(action, raw), "The two could not be distinguished."
    model._scripts["success"] = 0.9
    more = ("--policy", f"sb3:ppo:{tmp_path / 'agent'}", "--episodes", "1")
    assert evaluate(tmp_path, *more, "--vecnormalize", str(tmp_path / "normalizer.pkl")) == 0


def test_a_wrong_vecnormalize_is_refused(tmp_path, model, agents, capsys):
    """The statistics of another environment would distort every observation."""
    ppo_agent = ("--policy", f"sb3:ppo:{agents / 'ppo'}")
    (tmp_path / "text.pkl").write_text("no pickle")
    VecNormalize(DummyVecEnv([CountingEnv])).save(str(tmp_path / "other.pkl"))
    for name, message in (
        ("text.pkl", "text.pkl is not the VecNormalize of this environment"),
        ("other.pkl", "other.pkl is not the VecNormalize of this environment"),
        ("none.pkl", "There is no file"),
    ):
        assert evaluate(tmp_path, *ppo_agent, "--vecnormalize", str(tmp_path / name)) == 2
        assert message in capsys.readouterr().err
    assert evaluate(tmp_path, "--vecnormalize", str(tmp_path / "other.pkl")) == 2
    assert "--vecnormalize needs a trained agent" in capsys.readouterr().err
    assert model.names == []


def test_the_current_folder_is_searched_for_environments(tmp_path):
    """An environment beside the user's script would not be found."""
    (tmp_path / "our_drawers.py").write_text(
        "import gymnasium as gym\ngym.register('Drawer-v0', 'robometer_gym.testing:CountingEnv')\n"
    )
    program = (
        "import sys; sys.path = [p for p in sys.path if p]\n"  # as for the installed script
        "from robometer_gym.cli.env_and_policy import make_env\n"
        "print(make_env('our_drawers:Drawer-v0', 'open', {}).spec.id)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout == "Drawer-v0\n", run.stderr


# --- successes that end an episode, and Ctrl-C ---


def test_hold_lets_the_detector_see_a_success(tmp_path, model, capsys):
    """A perfect agent would get a recall of 0 where the environment ends itself on success."""
    model._scripts["success"] = lambda clip: 0.9 * (clip.steps[-1] >= 3)
    gym.register("HoldDrawer-v0", "robometer_gym.testing:CountingEnv")
    arguments = ["eval", "HoldDrawer-v0", "--task", "open", "--episodes", "2"]
    arguments += ["--env-kwargs", "lengths=[3]", "success=[true]", "--out", str(tmp_path / "out")]
    recalls = []
    for more in ([], ["--hold", "5"]):
        assert main([*arguments, *more]) == 0
        totals = json.loads((tmp_path / "out" / "report.json").read_text())["totals"]
        recalls.append((totals["recall"], totals["undecided"], totals["last_frame_recall"]))
    assert recalls == [(0, 2, 1), (1, 0, 1)]
    assert "2 of 2 successful episodes ended before" in capsys.readouterr().err


def test_ctrl_c_keeps_finished_episodes(tmp_path, model, capsys):
    """Hours of episodes would be lost."""

    def progress(clip):
        if clip.stream.episode == 2:
            raise KeyboardInterrupt
        return 0.5

    model._scripts["progress"] = progress
    assert evaluate(tmp_path, "--episodes", "5") == 130
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [episode["seed"] for episode in report["episodes"]] == [0, 1]
    assert "robometer-gym: Interrupted after 2 of 5 episodes.\n" in capsys.readouterr().err
