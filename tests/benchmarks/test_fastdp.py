"""fastDP takes part from a folder of its source; it is in no registry, so a stand-in answers to its documented use."""

import importlib
import sys
import textwrap

import pytest
import torch
from benchmarks.contestants import CONTESTANTS, HUSHGRAD
from benchmarks.eligibility import failure, update
from benchmarks.workloads import SMALL

from benchmarks import fastdp

pytestmark = pytest.mark.filterwarnings("ignore::hushgrad.errors.HushgradWarning", "ignore:Using a non-full backward")

NAMES = ("fastdp", "fastdp-origin")

# Linear layers on flat records only: norms by Goodfellow's product, `.grad` made in `step` from what hooks kept.
STAND_IN = """
    import types
    import torch
    __version__ = "7.5.0"
    class PrivacyEngine:
        def __init__(self, module, *, batch_size, sample_size, epochs, noise_multiplier, max_grad_norm, clipping_fn,
                     clipping_style, origin_params):
            assert (clipping_fn, clipping_style) == ("Abadi", "all-layer") and sample_size > batch_size and epochs > 0
            print("Applying per-sample gradient clipping")
            self.batch_size, self.std, self.C = batch_size, noise_multiplier * max_grad_norm, max_grad_norm
            self.layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(origin_params is None or any(part in name for part in origin_params))
        def attach(self, optimizer):
            for layer in self.layers:
                layer.register_forward_hook(self.keep_input)
            plain = optimizer.step
            def step(_):
                optimizer.zero_grad()
                squares = sum((a.square().sum(1) + 1) * g.square().sum(1) for a, g in map(self.kept, self.layers))
                factors = (self.C / (squares.sqrt() + 1e-6)).clamp(max=1.0)
                for layer in self.layers:
                    a, g = self.kept(layer)
                    for parameter, total in ((layer.weight, (factors[:, None] * g).T @ a), (layer.bias, factors @ g)):
                        parameter.grad = (total + self.std * torch.randn_like(total)) / self.batch_size
                plain()
            optimizer.step = types.MethodType(step, optimizer)
        def keep_input(self, layer, inputs, output):
            layer.a = inputs[0].detach()
            output.register_hook(lambda gradient: setattr(layer, "g", gradient * self.batch_size))
        def kept(self, layer):
            return layer.a, layer.g
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the stand-in, named by the environment; what was imported from it is forgotten afterwards."""
    (tmp_path / "fastDP").mkdir()
    (tmp_path / "fastDP" / "__init__.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setenv(fastdp.VARIABLE, str(tmp_path))
    monkeypatch.delitem(sys.modules, "fastDP", raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("fastDP", None)


@pytest.mark.parametrize("name", NAMES)
def test_fastdp_from_a_folder_trains_all_parameters_and_makes_the_same_update(folder, name, capsys):
    path = list(sys.path)
    assert CONTESTANTS[name].missing() is None
    expected = update(SMALL["mlp"], HUSHGRAD)
    assert failure(SMALL["mlp"], name, expected) is None
    assert (update(SMALL["mlp"], name) - expected).norm() <= 1e-3 * expected.norm()
    assert sys.path == path
    assert capsys.readouterr().out == ""


def test_a_peer_whose_update_is_another_one_takes_no_part(folder):
    init = folder / "fastDP" / "__init__.py"
    init.write_text(init.read_text().replace("factors @ g", "0 * (factors @ g)"))  # biases stay as they are
    expected = update(SMALL["mlp"], HUSHGRAD)
    assert "its step without noise is another one" in failure(SMALL["mlp"], "fastdp", expected)


def test_what_the_source_raises_is_the_reason_for_its_absence(folder):
    (folder / "fastDP" / "__init__.py").write_text("import a_package_that_it_needs\n")
    expected = update(SMALL["mlp"], HUSHGRAD)
    assert "a_package_that_it_needs" in failure(SMALL["mlp"], "fastdp", expected)


def test_the_version_is_read_from_the_source(folder):
    assert CONTESTANTS["fastdp"].version("fastDP") == "7.5.0 (from its source)"


def test_a_folder_without_fastdp_and_no_folder_are_said_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv(fastdp.VARIABLE, str(tmp_path))
    assert "fastDP/__init__.py" in fastdp.missing()
    monkeypatch.delenv(fastdp.VARIABLE)
    monkeypatch.setattr(sys, "path", [])
    assert "--fastdp FOLDER" in fastdp.missing()


def test_the_origin_is_where_a_backward_ends():
    assert fastdp.origin_of(SMALL["mlp"].model()) == ["1.bias"]
    assert fastdp.origin_of(SMALL["resnet-gn"].model()) == ["0.weight"]  # a convolution without bias
    assert fastdp.origin_of(SMALL["encoder"].model()) == ["tokens.weight", "positions.weight"]
    assert fastdp.origin_of(SMALL["lora"].model()) == ["blocks.0.attention.packed.narrow.weight"]


def test_every_trained_parameter_is_compared_though_fastdp_takes_requirements_away(folder):
    runner = CONTESTANTS["fastdp-origin"].build(SMALL["mlp"], 0.0)
    assert len(runner.parameters) == 6
    assert sum(parameter.requires_grad for parameter in runner.parameters) == 1
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in runner.parameters)
