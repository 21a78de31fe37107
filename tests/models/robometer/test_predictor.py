"""Parity: every prediction compared with an independent reading of the published recipe."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer.demo import make_random_checkpoint
from robometer_gym.models.robometer.network import eager
from robometer_gym.reward_model import Clip, RewardModelError
from robometer_gym.testing import check_reward_model
from tests.models.robometer.reference import REAL_PROCESSOR, Reference


def assert_close(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def clip(length: int, height: int = 64, width: int = 64, task: str = "open it", seed: int = 0):
    rng = np.random.default_rng([length, height, width, seed])
    # Blocks of color: adjacent frames differ much more than adjacent pixels.
    small = rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return Clip(small[:, rows][:, :, columns], task)


CLIPS = (
    clip(1),
    clip(5, 96, 64, "sort the {blocks}, 'neatly'"),
    clip(8, 64, 160, "把红色的杯子放在桌子上"),
    clip(12, 64, 64, "push the red block to the left, then come back and rest"),
    clip(2, 100, 150, "open it"),
)
IDS = [f"{len(one)} frames" for one in CLIPS]


def shake(folder: Path) -> Path:
    """Give every vector of the checkpoint (norms, biases) random values.

    At their usual initial values, ones and zeros, many mistakes would have no effect: leaving out a
    norm's weight or a bias would change nothing.
    """
    (file,) = folder.glob("*.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(file)
    for name in sorted(tensors):
        if tensors[name].ndim == 1:
            noise = torch.rand(tensors[name].shape, generator=generator)
            tensors[name] = (noise + (0.5 if name.endswith("weight") else -0.5)).contiguous()
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["lerobot", "upstream"])
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / request.param
    return shake(make_random_checkpoint(path, format=request.param))


@pytest.fixture(scope="module")
def model(folder) -> RobometerRewardModel:
    # Upstream's checkpoints have no tokenizer of their own; ours, made for tests, may.
    return RobometerRewardModel.from_pretrained(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def reference(folder) -> Reference:
    return Reference(folder)


def assert_same(prediction, expected) -> None:
    progress, success = expected
    assert prediction.progress.dtype == prediction.success.dtype == np.float32
    assert_close(prediction.progress, progress)
    assert_close(prediction.success, success)


@pytest.mark.parametrize("one", CLIPS, ids=IDS)
def test_one_clip_gets_the_published_numbers(model, reference, one):
    """Everything a user does with this package rests on these numbers."""
    (prediction,) = model.predict([one])
    assert_same(prediction, reference.predict(one))
    assert np.ptp(prediction.progress) > 1e-3 or len(one) == 1, "the frames must differ"


def test_a_ragged_batch_gets_the_published_numbers(model, reference):
    """In a vector env of mixed episodes, a reward would depend on the padding of others."""
    for prediction, one in zip(model.predict(CLIPS), CLIPS, strict=True):
        assert_same(prediction, reference.predict(one))
    backwards = CLIPS[::-1]
    for prediction, one in zip(model.predict(backwards), backwards, strict=True):
        assert_same(prediction, reference.predict(one))


def test_a_large_batch_is_split_without_effect(model, monkeypatch):
    """Many environments at once are scored in several passes; each must get its own prediction."""
    clips = [clip(length, 64, 64 + 32 * (length % 3), seed=length) for length in (3, 1, 6, 2, 5, 4)]
    whole = model.predict(clips)
    monkeypatch.setattr(eager, "_MAX_TOKENS", 40)
    for one, other in zip(model.predict(clips), whole, strict=True):
        assert_close(one.progress, other.progress)
        assert_close(one.success, other.success)


def test_both_file_formats_are_one_model(tmp_path):
    """The two published repositories hold the same weights; they must score the same."""
    predictions = []
    for layout in ("lerobot", "upstream"):
        path = make_random_checkpoint(tmp_path / layout, seed=3, format=layout)
        predictions.append(RobometerRewardModel.from_pretrained(path, device="cpu").predict(CLIPS))
    for one, other in zip(*predictions, strict=True):
        assert_close(one.progress, other.progress)
        assert_close(one.success, other.success)


@pytest.mark.skipif(
    not REAL_PROCESSOR.is_dir(),
    reason="shared/data/qwen3-vl-processor is not beside this checkout: no real tokenizer",
)
def test_the_real_tokenizer_gets_the_published_numbers(tmp_path):
    """The published checkpoint uses this tokenizer; a model right only with ours is no use."""
    path = shake(make_random_checkpoint(tmp_path / "real", processor=REAL_PROCESSOR))
    model = RobometerRewardModel.from_pretrained(path, device="cpu", dtype=torch.float32)
    reference = Reference(path, REAL_PROCESSOR)
    for prediction, one in zip(model.predict(CLIPS), CLIPS, strict=True):
        assert_same(prediction, reference.predict(one))
    a, b = clip(3, seed=1), clip(5, seed=2)
    assert model.prefer(a, b) == pytest.approx(reference.prefer(a, b), abs=1e-5)


@pytest.mark.parametrize("lengths", [(1, 1), (8, 8), (3, 10)], ids=str)
def test_preferences_are_the_published_numbers(model, reference, lengths):
    """A ranking of attempts would be noise that looks like a ranking."""
    a, b = clip(lengths[0], 96, 64, seed=1), clip(lengths[1], 64, 64, seed=2)
    ours = model.prefer(a, b)
    assert isinstance(ours, float)
    assert ours == pytest.approx(reference.prefer(a, b), abs=1e-5)
    assert abs(reference.prefer_in_order(a, b) - 0.5) > 1e-3, "must differ from a coin toss"


def test_preferences_do_not_depend_on_the_order(model):
    """The first clip of a pair would win for being first: P(a over b) + P(b over a) is 1."""
    a, b = clip(4, seed=1), clip(6, seed=2)
    assert model.prefer(a, b) + model.prefer(b, a) == pytest.approx(1, abs=1e-6)
    assert model.prefer(a, a) == pytest.approx(0.5, abs=1e-6)
    assert model.prefer(a, b) != pytest.approx(0.5, abs=1e-4)


MISTAKES = ("one column late", "one column early", "before the last norm", "no norm weight", "task")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_these_comparisons_find_mistakes(model, reference, mistake):
    """A comparison that cannot fail proves nothing: five classic mistakes must show."""
    one = CLIPS[1]
    (prediction,) = model.predict([one])
    if mistake == "task":
        wrong = reference.predict(Clip(one.frames, "something else"))
    elif mistake == "before the last norm":
        broken = copy.copy(reference)
        broken.backbone = copy.deepcopy(reference.backbone)
        broken.backbone.language_model.norm = torch.nn.Identity()
        wrong = broken.predict(one)
    elif mistake == "no norm weight":
        broken = copy.copy(reference)
        broken.tensors = dict(reference.tensors)
        for head in ("progress", "success"):
            broken.tensors[f"{head}_head.1.weight"] = torch.ones_like(
                reference.tensors[f"{head}_head.1.weight"]
            )
        wrong = broken.predict(one)
    else:
        wrong = reference.predict(one, shift=1 if mistake == "one column late" else -1)
    for ours, its in zip((prediction.progress, prediction.success), wrong, strict=True):
        assert np.abs(ours - its).max() > 1e-3


def test_it_fulfills_the_reward_model_contract(model):
    """The wrappers rely on it: shapes, dtypes, ranges, batches equal to clips one by one."""
    check_reward_model(model, tolerance=1e-5)


def test_later_frames_do_not_change_earlier_predictions(model):
    """The curve of an attempt would depend on its end."""
    whole = CLIPS[3]
    (full,) = model.predict([whole])
    for length in (1, 5, 11):
        (part,) = model.predict([Clip(whole.frames[:length], whole.task)])
        assert_close(part.progress, full.progress[:length])
        assert_close(part.success, full.success[:length])


def test_the_same_clip_gets_the_same_prediction(model):
    """With dropout left on, rewards would be noisy and no run could be repeated."""
    first, second = model.predict(CLIPS[:3]), model.predict(CLIPS[:3])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.progress, other.progress)
        np.testing.assert_array_equal(one.success, other.success)
    assert not any(module.training for module in model.model.modules())


def test_no_clips_no_predictions(model):
    """A vector env with no prediction due passes no clips; that must not crash."""
    assert model.predict([]) == []
    empty = model.compute_reward([])
    assert empty.shape == (0,)
    assert empty.dtype == np.float32


def test_no_gradients_are_kept(model):
    """Memory would grow with every prediction of a long training run."""
    model.predict(CLIPS[:1])
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_compute_reward_is_the_last_frames_progress(model):
    """As in LeRobot: the reward of an attempt is its present progress, from its last 8 frames."""
    rewards = model.compute_reward(CLIPS)
    assert rewards.shape == (len(CLIPS),)
    assert rewards.dtype == np.float32
    last_frames = [Clip(each.frames[-8:], each.task) for each in CLIPS]
    expected = [prediction.progress[-1] for prediction in model.predict(last_frames)]
    np.testing.assert_array_equal(rewards, expected)
    assert abs(rewards[3] - model.predict(CLIPS[3:4])[0].progress[-1]) > 1e-3, (
        "12 frames score alike"
    )


def test_compute_reward_is_one_where_success_exceeds_the_threshold(model):
    """As in LeRobot: 0 or 1, by the last frame's success probability."""
    last_frames = [Clip(each.frames[-8:], each.task) for each in CLIPS]
    success = [float(prediction.success[-1]) for prediction in model.predict(last_frames)]
    between = float(np.median(success))  # of an odd number of clips: one of the values itself
    rewards = model.compute_reward(CLIPS, output="success", success_threshold=between)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [float(value > between) for value in success]
    assert 0 < rewards.sum() < len(CLIPS)
    by_default = model.compute_reward(CLIPS, output="success")
    assert by_default.tolist() == [float(value > 0.5) for value in success]


def test_compute_reward_takes_the_checkpoints_defaults(folder):
    """LeRobot's users set output and threshold in config.json: others would be used here."""
    loaded = RobometerRewardModel.from_pretrained(folder, device="cpu")
    threshold = float(loaded.predict(CLIPS[:1])[0].success[-1]) - 1e-3
    loaded.config = dataclasses.replace(
        loaded.config, reward_output="success", success_threshold=threshold, max_frames=2
    )
    assert loaded.compute_reward(CLIPS[:1]).tolist() == [1.0]
    assert loaded.compute_reward(CLIPS[:1], success_threshold=threshold + 2e-3).tolist() == [0.0]
    last = Clip(CLIPS[1].frames[-2:], CLIPS[1].task)
    (progress,) = loaded.compute_reward(CLIPS[1:2], output="progress")
    assert progress == loaded.predict([last])[0].progress[-1]


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (CLIPS[0], r"got one: call predict\(\[clip\]\)"),
        (CLIPS[0].frames, r"got an array \(1, 64, 64, 3\): call predict\(\[Clip\(frames, task\)\]"),
        ([CLIPS[0].frames], r"got ndarray: make each by Clip"),
        (3, r"got int"),
    ],
    ids=["a clip", "an array", "arrays", "a number"],
)
def test_predict_refuses_other_arguments(model, clips, message):
    """The user would get an AttributeError from within."""
    with pytest.raises(TypeError, match=message):
        model.predict(clips)


def test_compute_reward_refuses_an_unknown_output(model):
    """A misspelt output would silently give progress."""
    with pytest.raises(ValueError, match=r"output must be .*'progress'.*'success'.*got 'sucess'"):
        model.compute_reward(CLIPS[:1], output="sucess")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_compute_reward_refuses_an_impossible_threshold(model, threshold):
    """A percentage instead of a probability would mean that nothing ever succeeds."""
    with pytest.raises(ValueError, match=r"success_threshold must be .*got"):
        model.compute_reward(CLIPS[:1], output="success", success_threshold=threshold)


def test_clips_of_two_tasks_cannot_be_compared(model):
    """A preference between attempts at different tasks has no meaning."""
    with pytest.raises(ValueError, match=r"two attempts at one task, got 'open it' and 'close it'"):
        model.prefer(clip(2), clip(2, task="close it"))


def test_a_device_that_is_not_there_is_refused(tmp_path):
    """The user would get an assertion of torch's, or load 9 GB first."""
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        RobometerRewardModel.from_pretrained(tmp_path, device="gpu")


def test_demo_is_a_name():
    """`reward_model="demo"` would look on the hub for a repository called "demo"."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert RobometerRewardModel.from_pretrained("demo").config.progress_bins == 10
    assert torch.equal(torch.rand(3), expected), "a seeded training would be another one"


def test_a_forked_process_gets_an_error_and_does_not_hang(model):
    """A vector env that forks after the model was used would wait for ever."""
    one_frame = Clip(np.zeros((1, 64, 64, 3), np.uint8), "open the drawer")
    model.predict([one_frame])
    errors = multiprocessing.get_context("fork").SimpleQueue()

    def predict() -> None:
        try:
            model.predict([one_frame])
        except RewardModelError as error:
            errors.put(str(error))

    with warnings.catch_warnings():  # Python 3.12 warns about this
        warnings.simplefilter("ignore", DeprecationWarning)
        worker = multiprocessing.get_context("fork").Process(target=predict)
        worker.start()
    worker.join(600)
    hung = worker.is_alive()
    worker.kill()
    assert not hung
    assert "context='spawn'" in errors.get()


def test_a_pickled_model_predicts_in_its_new_process(model):
    """A worker that received the model by spawn would fail as if it had been forked."""
    one_frame = Clip(np.zeros((1, 64, 64, 3), np.uint8), "open the drawer")
    copied = pickle.loads(pickle.dumps(model))
    copied._check_process()
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(copied.model.state_dict()[name], tensor), name
    ours = copied.predict([one_frame])[0].progress  # the memory layout changes the last bit
    np.testing.assert_allclose(ours, model.predict([one_frame])[0].progress, rtol=1e-6)
