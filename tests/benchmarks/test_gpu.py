"""The GPU benchmark where there is no GPU: its workloads, its arithmetic, and that it measures nothing in silence."""

import pytest
import torch
from benchmarks.gpu import DECODERS, Decoder, _rate, _Work, gpt2, kernel_results, llama_1b, main, step_result
from benchmarks.llama import Llama, rotated
from benchmarks.timing import Interval
from click.testing import CliRunner

from hushgrad.gradients.cuda import dispatch as norms
from hushgrad.noise.cuda import dispatch as noise


@pytest.mark.parametrize(("make", "vocabulary", "parameters"), [(gpt2, 50_257, 163e6), (llama_1b, 128_256, 1.236e9)])
def test_models_have_the_sizes_that_they_are_named_for(make, vocabulary, parameters):
    with torch.device("meta"):
        model = make(2048)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.01)
    assert model.tokens.num_embeddings == vocabulary


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: f"{decoder.title} {decoder.positions}")
def test_every_workload_gives_logits_for_each_position_on_the_meta_device(decoder):
    workload = decoder.workload("meta")
    model, (ids, targets) = workload.model(), workload.batch()
    assert ids.shape == targets.shape == (decoder.batch_size, decoder.positions)
    logits = model(ids)
    assert logits.shape == (decoder.batch_size, decoder.positions, decoder.vocabulary)
    assert logits.dtype == torch.bfloat16
    assert workload.criterion(reduction="none")(logits, targets).shape == (decoder.batch_size,)
    assert {(512, gpt2), (2048, gpt2), (512, llama_1b), (2048, llama_1b)} == {(d.positions, d.make) for d in DECODERS}


def test_rotary_products_depend_on_the_distance_of_positions_only():
    query, key = torch.randn(1, 1, 1, 8).expand(1, 1, 10, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 10, 8)
    products = (rotated(query) @ rotated(key).mT)[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def small_llama(positions):
    return Llama(vocabulary=50, width=16, depth=1, heads=4, shared_heads=2, inner=24)


def test_a_private_step_of_a_small_one_runs_on_the_cpu():
    found = step_result(Decoder("small", small_llama, 50, 6, 2), "cpu", rounds=6)
    assert found.title == "small, T=6"
    assert found.ratio.median > 0


def test_a_rate_is_the_work_over_the_time_and_its_interval_turns_round():
    rate = _rate(Interval(2.0, 1.0, 4.0, 0.95), _Work(lambda: None, 8_000_000))
    assert (rate.median, rate.low, rate.high) == (4.0, 2.0, 8.0)


def test_kernels_are_timed_beside_ceilings(monkeypatch):
    """The kernels themselves are replaced here: what is looked at is that each is called, and each has its ceiling."""
    called = set()
    for owner, name in ((noise, "noisy_update"), (norms, "gram_norms"), (norms, "instantiated_norms")):
        monkeypatch.setattr(owner, name, lambda *operands, name=name, **options: called.add(name))
    results = kernel_results("cpu", 6, values=1000, size=8)
    assert len(results) == len(called) == 3
    assert all(0 < result.rate.low <= result.rate.high and result.share > 0 for result in results)


def test_without_a_gpu_it_says_so_and_exits_with_1():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "no CUDA device" in result.output
