"""Weights and optimizer states of Opacus' layers are those of torch's own: same outputs, moments in their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.layers import DPMultiheadAttention
from opacus_runs import FIXTURES, RECURRENT, SAID, SHUFFLED, Attending, OpacusRun, Recurrent, mlp, probe_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad.accounting import read_ledger
from hushgrad.errors import CheckpointError, UnsupportedModelError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.migration.opacus import OpacusAttention, read_checkpoint, reproduce_attention


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_weights_give_the_outputs_of_opacus_in_torchs_own_layer(kind: str, tmp_path: Path) -> None:
    theirs, ours = RECURRENT[kind]
    run = OpacusRun(Recurrent(theirs), (5, 3))
    found = read_checkpoint(run.save(tmp_path / "opacus.pt"), **SAID)
    assert len(found.stored.weights) == 34  # each of the 16 tensors of the layer under its old and its new name
    model = Recurrent(ours)
    model.load_state_dict(found.weights_for(model))
    torch.testing.assert_close(model.eval()(probe_of(5, 3)), run.output(5, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kept", ["old", "new"])
def test_either_set_of_names_is_enough(kept: str, tmp_path: Path) -> None:
    run = OpacusRun(Recurrent(RECURRENT["LSTM"][0]), (5, 3))
    path = run.save(tmp_path / "opacus.pt")
    content = torch.load(path, weights_only=True)
    state = content["module_state_dict"]
    content["module_state_dict"] = {
        name: value
        for name, value in state.items()
        if "head" in name or (".l0" in name or ".l1" in name) == (kept == "old")
    }
    torch.save(content, path)
    model = Recurrent(nn.LSTM)
    model.load_state_dict(read_checkpoint(path, **SAID).weights_for(model))
    torch.testing.assert_close(model.eval()(probe_of(5, 3)), run.output(5, 3), atol=1e-6, rtol=0)


def moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the first moments by the parameter's name."""
    return {
        name.removeprefix("_module."): optimizer.state[parameter]["exp_avg"]
        for name, parameter in module.named_parameters()
    }


def test_moments_stay_with_their_parameters_though_the_order_of_the_layer_differs(tmp_path: Path) -> None:
    run = OpacusRun(Recurrent(RECURRENT["LSTM"][0]), (5, 3))
    found = read_checkpoint(run.save(tmp_path / "opacus.pt"), **SAID)
    model = Recurrent(nn.LSTM)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(found.optimizer_for(model))
    theirs = moments(run.optimizer.original_optimizer, run.module)
    ours = moments(optimizer, model)
    assert [*theirs] != [*ours]
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_moments_of_attention_are_joined_as_its_weights_are(tmp_path: Path) -> None:
    run = OpacusRun(Attending(DPMultiheadAttention, batch_first=True), (5, 4))
    found = read_checkpoint(run.save(tmp_path / "opacus.pt"), **SAID)
    model = Attending(nn.MultiheadAttention, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(found.optimizer_for(model))
    theirs, ours = moments(run.optimizer.original_optimizer, run.module), moments(optimizer, model)
    for kind in ("weight", "bias"):
        parts = [theirs[f"attention.{part}linear.{kind}"] for part in "qkv"]
        assert torch.equal(ours[f"attention.in_proj_{kind}"], torch.cat(parts))
        assert torch.equal(ours[f"attention.out_proj.{kind}"], theirs[f"attention.out_proj.{kind}"])
    assert {int(state["step"]) for state in optimizer.state.values()} == {7}


def test_a_state_whose_parameters_cannot_be_told_is_refused(tmp_path: Path) -> None:
    path = OpacusRun(Recurrent(RECURRENT["LSTM"][0]), (5, 3)).save(tmp_path / "opacus.pt")
    content = torch.load(path, weights_only=True)
    group = content["optimizer_state_dict"]["param_groups"][0]
    content["optimizer_state_dict"]["param_groups"] = [
        {**group, "params": group["params"][:4]},
        {**group, "params": group["params"][4:]},
    ]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="cannot be told") as caught:
        read_checkpoint(path, **SAID).optimizer_for(Recurrent(nn.LSTM))
    assert "costs no privacy" in caught.value.cure


def test_groups_of_a_model_without_layers_of_opacus_are_taken_as_they_are(tmp_path: Path) -> None:
    path = OpacusRun(mlp(), (4,)).save(tmp_path / "opacus.pt")
    content = torch.load(path, weights_only=True)
    group = content["optimizer_state_dict"]["param_groups"][0]
    groups = [{**group, "params": [0, 1]}, {**group, "params": [2, 3]}]
    content["optimizer_state_dict"]["param_groups"] = groups
    torch.save(content, path)
    assert read_checkpoint(path, **SAID).optimizer_for(mlp())["param_groups"] == groups


@pytest.mark.parametrize(
    ("model", "where", "part"),
    [
        (lambda: nn.Linear(4, 2), "the checkpoint", "no place"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(2, 2)), "the checkpoint", "are not in it"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), "0.weight", "(3, 4) in the checkpoint"),
    ],
)
def test_another_model_is_refused_by_names_and_shapes(model: Any, where: str, part: str, tmp_path: Path) -> None:
    found = read_checkpoint(OpacusRun(mlp(), (4,)).save(tmp_path / "opacus.pt"), **SAID)
    with pytest.raises(CheckpointError) as caught:
        found.weights_for(model())
    assert caught.value.where == where
    assert part in caught.value.what


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpacusRun, Path]:
    run = OpacusRun(Attending(DPMultiheadAttention, batch_first=True), (5, 4))
    return run, run.save(tmp_path_factory.mktemp("opacus") / "attention.pt")


def test_attention_with_the_batch_first_is_another_function_than_torchs_and_refused(
    attending: tuple[OpacusRun, Path],
) -> None:
    run, path = attending
    found = read_checkpoint(path, **SAID)
    model = Attending(nn.MultiheadAttention, batch_first=True)
    with pytest.raises(UnsupportedModelError, match="joins the outputs of its heads in the wrong order") as caught:
        found.weights_for(model)
    assert caught.value.where == "attention"
    model.load_state_dict(found.weights_for(model, attention_as_torch=True))
    apart = model.eval()(probe_of(5, 4)) - run.output(5, 4)
    assert apart.abs().max() > 1e-2  # the weights fit; the function is another


def test_reproduced_attention_is_the_function_that_was_trained(attending: tuple[OpacusRun, Path]) -> None:
    run, path = attending
    model = Attending(nn.MultiheadAttention, batch_first=True)
    parameters = dict(model.named_parameters())
    assert reproduce_attention(model) == ["attention"]
    assert reproduce_attention(model) == []
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameters[name] is value for name, value in model.named_parameters())
    model.load_state_dict(read_checkpoint(path, **SAID).weights_for(model))
    torch.testing.assert_close(model.eval()(probe_of(5, 4)), run.output(5, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kdim", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_reproduced_attention_has_outputs_and_weights_of_opacus(kdim: int | None, masked: bool, training: bool) -> None:
    torch.manual_seed(0)
    ours = OpacusAttention(nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim))
    theirs = DPMultiheadAttention(8, 2, batch_first=True, kdim=kdim)
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()})
    ours.train(training)
    theirs.train(training)
    query, key = torch.randn(4, 5, 8), torch.randn(4, 5, kdim or 8)
    value = torch.randn(4, 5, 8)
    padding = (torch.arange(5) > torch.tensor([[4], [3], [4], [1]])) if masked else None
    expected, weights = theirs(query, key, value, key_padding_mask=padding)
    found, found_weights = ours(query, key, value, key_padding_mask=padding)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found_weights, weights, atol=1e-6, rtol=0)


def test_inside_of_an_encoder_layer_no_fast_path_takes_its_place() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).train()
    plain_output = layer(x := torch.randn(3, 5, 8)).detach()
    assert reproduce_attention(layer) == ["self_attn"]
    trained = layer(x).detach()
    with torch.no_grad():
        evaluated = layer.eval()(x)
    torch.testing.assert_close(evaluated, trained, atol=1e-6, rtol=0)
    assert (plain_output - trained).abs().max() > 1e-2


def test_a_model_with_reproduced_attention_trains_as_one_example_at_a_time_does() -> None:
    torch.manual_seed(0)
    model = Attending(nn.MultiheadAttention, batch_first=True)
    reproduce_attention(model)
    x, y = torch.randn(6, 5, 4), torch.randint(2, (6,))
    mechanism = hushgrad.DPSGD(
        noise_multiplier=0.0,
        clipping=hushgrad.FlatClipping(0.3),
        sampling=hushgrad.PoissonSampling(rate=0.5),
        expected_batch_size=3,
    )
    criterion = nn.CrossEntropyLoss(reduction="none")
    losses = [lambda i=i: criterion(model(x[i : i + 1]), y[i : i + 1])[0] for i in range(6)]
    expected = clipped_sum_of(one_at_a_time(model, losses), hushgrad.FlatClipping(0.3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = hushgrad.privatize(model, optimizer, mechanism)
    session.backward(criterion(model(x), y))
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close((before[name] - value.detach()) * 3, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_zero_attn=True),
    ],
)
def test_attention_that_opacus_computes_as_torch_does_is_not_exchanged(layer: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Keep nn\.MultiheadAttention"):
        OpacusAttention(layer())


def test_a_layer_by_itself_cannot_be_put_in_its_own_place() -> None:
    with pytest.raises(UnsupportedModelError, match=r"OpacusAttention\(model\)"):
        reproduce_attention(nn.MultiheadAttention(4, 2, batch_first=True))


def test_attention_of_an_old_file_is_on_trust_in_its_ledger(tmp_path: Path) -> None:
    found = read_checkpoint(FIXTURES / "1.4.0" / "attention.pt", **SHUFFLED)
    found.write_ledger(tmp_path / "ledger")
    assert "attention of Opacus 1.4" in {condition.name for condition in read_ledger(tmp_path / "ledger").conditions}
    with pytest.raises(UnsupportedModelError, match="for which no epsilon of Opacus holds"):
        found.weights_for(Attending(nn.MultiheadAttention, batch_first=True))


def test_a_model_of_reproduced_attention_goes_through_make_private() -> None:
    torch.manual_seed(0)
    model = Attending(nn.MultiheadAttention, batch_first=True)
    reproduce_attention(model)
    engine = hushgrad.PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(40, 5, 4), torch.randint(2, (40,))), batch_size=10),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    assert engine.session.steps == 4
