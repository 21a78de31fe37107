"""Quantized weights: their predictions, their limits, and the devices that support them.

torchao's float8 requires a GPU, but torch's matrix product of float8 runs on a CPU as well: the
check is removed there. Tests that need a GPU are skipped without one.
"""

from __future__ import annotations

import pickle
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robometer_gym import RobometerRewardModel
from robometer_gym.models.robometer import predictor
from robometer_gym.models.robometer.demo import random_model
from robometer_gym.models.robometer.engine.fused_weights import FusedLinear, WeightVersions
from robometer_gym.models.robometer.network import quantize as quantize_module
from robometer_gym.reward_model import RewardModelError
from robometer_gym.training import prepare_model
from tests.models.robometer.engine.recomputation import (
    PROCESSOR,
    assert_close,
    clip,
    eager_twin,
    graph_count,
    new_model,
    small_config,
)
from tests.models.robometer.engine.test_graph_runner import as_on_cuda  # noqa: F401  # a fixture

CPU = torch.device("cpu")
HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
on_a_gpu = pytest.mark.skipif(not HAS_FLOAT8, reason="no GPU of compute capability 8.9 or more")
KINDS = ("int8", "nf4", "float8")
LIBRARIES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "float8": "torchao"}
STEP = 2e-3  # float8 turns a rounding difference into a step
CLIPS = ([clip("a", [0, 5])], [clip("a", [0, 5, 9]), clip("b", [1])])


@pytest.fixture
def float8_on_cpu(monkeypatch):
    """Let torchao quantize on a CPU as on a GPU."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import quant_api

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(predictor, "check_quantization", lambda *_: None)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_a_gpu)])
def device(request):
    """A device that multiplies matrices in float8."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    if request.param == "cpu":
        request.getfixturevalue("float8_on_cpu")
    return torch.device(request.param)


@pytest.fixture
def load(request, tmp_path):
    """Write a small random checkpoint, and load it quantized."""

    def load(kind: Any, device: str = "cpu") -> tuple[Any, Any]:
        pytest.importorskip(LIBRARIES[kind], reason=f"{LIBRARIES[kind]} is not installed")
        config = small_config(hidden_size=128)  # 4-bit blocks hold 64 weights
        whole = RobometerRewardModel(random_model(config, seed=0), PROCESSOR, config)
        whole.save_pretrained(tmp_path)
        if kind == "float8" and device == "cpu":
            request.getfixturevalue("float8_on_cpu")
        dtype = "bfloat16" if kind == "float8" else None
        model = RobometerRewardModel.from_pretrained(
            tmp_path, device=device, dtype=dtype, quantization=kind
        )
        if device == "cpu":  # the other weights: in bfloat16 two right paths are far apart
            model.model.float()
        return model, whole

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_give_the_numbers_of_the_eager_path(kind, load, tmp_path):
    """On a small card rewards would come from another model than the quantized one."""
    model, whole = load(kind)
    eager = eager_twin(model)
    for clips in CLIPS:
        ours = model.predict(clips)
        assert_close(ours, eager.predict(clips), tolerance=STEP if kind == "float8" else 1e-5)
        for one, other in zip(ours, whole.predict(clips), strict=True):
            np.testing.assert_allclose(one.progress, other.progress, rtol=0, atol=0.05)
            assert not np.array_equal(one.progress, other.progress)
    assert model.engine_info()["quantization"] == eager.engine_info()["quantization"] == kind
    with pytest.raises(ValueError, match=f"'{kind}', and no published format holds quantized"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match=f"loaded with quantization='{kind}' cannot be trained"):
        prepare_model(model.model, lora=None, train_vision=False)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_language_models_matrices_are_quantized(kind, load):
    """Rewards are differences of the heads' outputs: in 8 bits they would jump."""
    model, _ = load(kind)
    changed = [n for n, p in model.model.named_parameters() if type(p) is not nn.Parameter]
    matrix = r"backbone\.language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    assert all(re.fullmatch(rf"{matrix}\.weight", name) for name in changed)
    assert len(changed) == 7 * len(model.model.backbone.language_model.layers)


def test_a_quantized_model_is_neither_saved_nor_trained_and_reports_its_kind(tmp_path):
    """It would be written as if it were whole, or training would fail with an error of torch's."""
    model = new_model(own=True)
    assert model.engine_info()["quantization"] is None
    model.model.quantization = "float8"
    assert model.engine_info()["quantization"] == "float8"
    with pytest.raises(ValueError, match="quantization='float8', and no published format holds"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="quantization='float8' cannot be trained"):
        prepare_model(model.model, lora=None, train_vision=False)
    with pytest.raises(RewardModelError, match="Give the other process the name"):
        pickle.dumps(model)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "message"),
    [
        (
            "cpu",
            None,
            torch.float32,
            r"compute capability 8\.9 or more \(Ada, Hopper\): cpu is none\.",
        ),
        ("cuda:1", (8, 0), torch.bfloat16, r"cuda:1 has 8\.0\. Use quantization='int8'"),
        ("cuda:0", (8, 9), torch.float16, r"needs dtype='bfloat16', got torch\.float16"),
        ("cuda:0", (8, 9), torch.bfloat16, None),
        ("cuda:0", (12, 0), torch.bfloat16, None),
    ],
)
def test_float8_is_refused_where_it_cannot_be(monkeypatch, device, capability, dtype, message):
    """9 GB would be loaded before a library fails with an AssertionError, or a card be refused."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(quantize_module, "_library", lambda kind: None)
    if message is None:
        return quantize_module.check_quantization("float8", torch.device(device), dtype)
    with pytest.raises(ValueError, match=message):
        quantize_module.check_quantization("float8", torch.device(device), dtype)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_without_its_library_names_the_extra_to_install(kind, monkeypatch):
    """The user would get an ImportError of an unfamiliar name."""
    monkeypatch.setitem(sys.modules, LIBRARIES[kind], None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    extra = "float8" if kind == "float8" else "quantize"
    message = rf"needs {LIBRARIES[kind]}: pip install 'robometer-gym\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        quantize_module.check_quantization(kind, torch.device("cuda", 0), torch.bfloat16)


def test_an_impossible_kind_is_refused_before_anything_is_read():
    """A user would wait for a download of 9 GB before the error."""
    with pytest.raises(ValueError, match="'int8', 'nf4', 'float8' or None, got 'int4'"):
        RobometerRewardModel.from_pretrained("nowhere", device="cpu", quantization="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8\.9 or more"):
        RobometerRewardModel.from_pretrained("nowhere", device="cpu", quantization="float8")


def float8(device: torch.device, *outputs: int) -> list[nn.Linear]:
    make = quantize_module._float8_maker(device)
    plain = [nn.Linear(64, each, bias=False, dtype=torch.bfloat16) for each in outputs]
    return [make(each) for each in plain]  # type: ignore[misc]


def rounded(x: Tensor) -> Tensor:
    """Round each row of x to float8."""
    scale = (x.abs().amax(dim=1, keepdim=True) / 448).float()
    return (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@torch.no_grad()
def test_float8_multiplies_rows_rounded_to_float8(device):
    """Scales of the wrong side, or of a whole matrix, would make rewards of noise."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=False, dtype=torch.bfloat16)
    plain.weight *= torch.logspace(-3, 3, 48)[:, None]
    x = torch.randn(5, 64).bfloat16() * torch.logspace(-3, 3, 5)[:, None].bfloat16()
    expected = rounded(x) @ rounded(plain.weight).T
    size = x.float().norm(dim=1)[:, None] * plain.weight.float().norm(dim=1)
    ours = quantize_module._float8_maker(device)(plain)(x.to(device))
    assert ours.dtype == torch.bfloat16
    assert ((ours.cpu().float() - expected).abs() < 0.005 * size).all()


@torch.no_grad()
def test_nothing_but_zeros_is_zero_in_float8(device):
    """Padding of a batch on a GPU may be 0, and torchao divides by it: rewards would be NaN."""
    plain = nn.Linear(64, 48, bias=False, dtype=torch.bfloat16)
    plain.weight[5] = 0
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    x[2] = 0
    ours = quantize_module._float8_maker(device)(plain)(x.to(device))
    assert ours.isfinite().all()
    assert not ours[2].any()
    assert ours[:, 5].abs().max() < 1e-15
    assert ours[[0, 1, 3]][:, :5].all()


def test_float8_of_matrices_that_it_cannot_hold_is_refused(float8_on_cpu):
    """The library leaves such a matrix as it is: the user would believe that it is quantized."""
    with pytest.raises(ValueError, match="multiples of 16, got 64 to 24"):
        float8(CPU, 24)


def test_4_bits_of_matrices_that_a_cpu_cannot_multiply_are_refused():
    """With the demo model each prediction would fail with an error about shapes."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    with pytest.raises(ValueError, match=r"multiples of 64, got 96\. Use quantization='int8'"):
        RobometerRewardModel.from_pretrained("demo", device="cpu", quantization="nf4")


def test_float8_leaves_the_compilers_settings_alone(float8_on_cpu):
    """The user's own torch.compile would search for minutes, because of a reward model."""
    config = torch._inductor.config.get_config_copy()
    float8(CPU, 16)
    assert torch._inductor.config.get_config_copy() == config


@torch.inference_mode()
def test_layers_in_float8_run_one_by_one(device):
    """Fused as numbers without their scales, they would be another matrix."""
    with torch.inference_mode(False):
        layers = float8(device, 32, 16, 48)
    x = torch.randn(5, 64, dtype=torch.bfloat16, device=device)
    expected = [layer(x) for layer in layers]
    joined = FusedLinear(*layers)
    for which in (slice(None), slice(1, 3), slice(0, 1)):
        assert torch.equal(joined(x, which), torch.cat(expected[which], dim=-1))


def test_changes_of_weights_in_float8_are_found_once(float8_on_cpu):
    """The caches would be dropped at every prediction, or survive a change of weights."""
    layers = float8(CPU, 32, 16)
    network = nn.ModuleList(layers)
    versions = WeightVersions(network)
    assert not versions.changed()
    FusedLinear(*layers)
    network.to("cpu")
    assert not versions.changed()
    with torch.no_grad():
        layers[0].weight.copy_(float8(CPU, 32)[0].weight)
    assert versions.changed()
    assert not WeightVersions(network).changed()


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_that_share_a_quantized_network_forget_nothing(kind, load):
    """Each would take the other's layout of the weights for a change, at every call."""
    model, _ = load(kind)
    other = RobometerRewardModel(model.model, PROCESSOR, model.config)
    forgotten = []
    for clips in 2 * CLIPS:
        assert_close(model.predict(clips), other.predict(clips), tolerance=1e-5)
        forgotten.append([each.engine_info()["forgotten"] for each in (model, other)])
    assert forgotten[1] == forgotten[-1], "they forget at every call"


def test_float8_in_fixed_shapes(load, as_on_cuda):  # noqa: F811
    """On a GPU rewards would depend on the padding of a batch."""
    model, _ = load("float8")
    eager = eager_twin(model)
    for stream in ("a", "b", "c"):
        for steps in ([0], [0, 3], [0, 3, 5]):
            clips = [clip(stream, steps)]
            assert_close(model.predict(clips), eager.predict(clips), tolerance=STEP)
    assert graph_count(model) > 1


@on_a_gpu
def test_float8_on_a_gpu(load):
    """On its intended device float8 would run without graphs, or give other numbers."""
    model, whole = load("float8", device="cuda")
    eager = eager_twin(model)
    for stream in ("a", "b", "c"):
        for steps in ([0], [0, 3], [0, 3, 5]):
            clips = [clip(stream, steps)]
            ours = model.predict(clips)
            assert_close(ours, eager.predict(clips), tolerance=0.15)
            np.testing.assert_allclose(
                ours[0].progress, whole.predict(clips)[0].progress, rtol=0, atol=0.1
            )
    assert graph_count(model) > 1
