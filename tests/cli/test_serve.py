"""robometer-gym serve: a server of a checkpoint, its address, its token, and how it ends."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from robometer_gym import Clip, RobometerRewardModel
from robometer_gym.cli.main import main
from robometer_gym.models.http_client import TOKEN_VARIABLE
from robometer_gym.models.remote import RemoteRewardModel
from tests.paths import ROOT

CLIP = Clip(np.full((2, 32, 32, 3), 90, np.uint8), "move the gripper to the red block")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "a-host"])
def test_a_public_address_requires_a_token(host, capsys, monkeypatch):
    """Anyone in the network could use the GPU."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["serve", "--model", "demo", "--host", host]) == 2
    error = capsys.readouterr().err
    assert f"A server on {host} can be reached from other machines" in error
    assert "pass --token-file, or set ROBOMETER_GYM_TOKEN" in error


@pytest.mark.parametrize("token", ["", " \n", "two words", "ünïcode"])
def test_a_bad_token_is_refused_without_showing_it(token, tmp_path, capsys):
    """The server would start with a token that no client can send, or that all can guess."""
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    assert main(["serve", "--model", "demo", "--token-file", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"The token in {file} must be printable ASCII without spaces" in error


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_bad_port_is_refused(port, capsys):
    """The error would come from a socket, after the model has been loaded."""
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--port", port])
    assert "must be an integer from 0 to 65535" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_server(capsys):
    """A service would look healthy and never predict."""
    assert main(["serve", "--model", "./no-such-folder", "--port", "0"]) == 2
    assert "The checkpoint folder './no-such-folder' does not exist" in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error(capsys):
    """Two servers would start, and one of them never be used."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model", "demo", "--port", str(port)]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    """A user would see a traceback, and not the command that installs it."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "robometer_gym.serve.server", raising=False)
    assert main(["serve", "--model", "demo"]) == 2
    assert "pip install 'robometer-gym[serve]'" in capsys.readouterr().err


def test_the_command_serves_the_demo_checkpoint_until_it_is_terminated(tmp_path):
    """The documented command would not start, or not end."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    arguments = ["--model", "demo", "--device", "cpu", "--port", "0", "--token-file", str(token)]
    process = subprocess.Popen(
        [sys.executable, "-m", "robometer_gym", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving demo at http://127.0.0.1:")
        remote = RemoteRewardModel(line.split()[-1], token="s3cret", timeout=120.0)
        (mine,) = remote.predict([CLIP])
        assert remote.info()["options"] == {"device": "cpu"}
        remote.close()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert errors == ""
    (other,) = RobometerRewardModel.from_pretrained("demo", device="cpu").predict([CLIP])
    np.testing.assert_allclose(mine.progress, other.progress, rtol=0, atol=1e-5)


def test_replicas_need_ray(capsys):
    """A second replica would be named, and never be there."""
    assert main(["serve", "--model", "demo", "--replicas", "2"]) == 2
    assert "--replicas and --max-replicas need --ray" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray
def test_a_public_address_requires_a_token_on_ray_too(capsys, monkeypatch):
    """Anyone in the network could use the cluster."""
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["serve", "--ray", "--model", "demo", "--host", "0.0.0.0"]) == 2
    assert "so it needs a token" in capsys.readouterr().err
