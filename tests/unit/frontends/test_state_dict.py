"""Weights from a file, loaded into what the factory builds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit.core.errors import ConfigError
from edgekit.flow.project import Overrides, load_project
from edgekit.frontends._state_dict import load_weights
from edgekit.frontends.base import frontend_for


def net(width: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))


@pytest.fixture
def trained() -> torch.nn.Module:
    torch.manual_seed(7)
    return net()


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": dict(s), "epoch": 3}, lambda s: {"model": dict(s)}])
def test_a_state_dict_is_found_in_a_training_checkpoint(tmp_path, trained, wrap):
    torch.save(wrap(trained.state_dict()), tmp_path / "net.pt")
    module = net()
    load_weights(module, tmp_path / "net.pt")
    assert equal(module, trained)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_dropped(tmp_path, trained, prefix):
    save_file({f"{prefix}{key}": value for key, value in trained.state_dict().items()}, tmp_path / "net.safetensors")
    module = net()
    load_weights(module, tmp_path / "net.safetensors")
    assert equal(module, trained)


def test_names_that_do_not_fit_are_named(tmp_path, trained):
    state = {("0.wieght" if key == "0.weight" else key): value for key, value in trained.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"0\.weight \(nearest there: 0\.wieght\)"):
        load_weights(net(), tmp_path / "net.pt")


def test_a_shape_that_does_not_fit_is_named(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"'0\.weight' has the shape \[4, 3\]; the module's has \[5, 3\]"):
        load_weights(net(5), tmp_path / "net.pt")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def test_a_file_that_holds_more_than_tensors_is_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match="tensors alone"):
        load_weights(net(), tmp_path / "net.pt")
    assert not Path("pwned").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*gone\.pt"):
        load_weights(net(), tmp_path / "gone.pt")


def test_a_project_names_its_weights(tmp_path, trained):
    (tmp_path / "model.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    m = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))\n"
        "    return m, (torch.zeros(1, 3),)\n"
    )
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    (tmp_path / "edgekit.yaml").write_text("schema_version: 1\nsource: model.py:build\nweights: net.pt\n")
    project = load_project(tmp_path, Overrides(), {})
    model = frontend_for(project.source).load(project.source_request)
    assert equal(model.program.module, trained)
