import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hushgrad.accounting import epsilon
from hushgrad.accounting.events.release import Release
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import CheckpointError, InvalidArgumentError
from hushgrad.study.class_weights import CLASS_WEIGHTS, balanced_weights, given_weights
from hushgrad.study.config_json import config_from_json, config_to_json
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.models import build_model
from hushgrad.study.named_settings import values_from_text
from hushgrad.study.outcome import Callbacks
from hushgrad.study.preparation import check_budget, prepare
from hushgrad.study.report.files import check_report, write_report
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.training import train

GIVEN = (("0", 4.0), ("3", 0.5))


def config(weights=GIVEN, own=None, privacy=None, **changes):
    aim = privacy or Privacy(noise_multiplier=0.0, max_grad_norm=0.9)
    asked = {"batch_size": 400, "epochs": 1, "class_weights": weights, "class_weights_epsilon": own, **changes}
    return replace(suggested_run("digits", privacy=aim), **asked)


@pytest.fixture(scope="module")
def digits():
    return load_task("digits", config().options)


def update_of(task, rows, **changes):
    """The clipped sum of one step over the examples `rows`, all of which are drawn."""
    chosen = TensorDataset(*(tensor[rows] for tensor in task.train.tensors))
    part = replace(task, train=chosen)
    aim = config(batch_size=len(rows), hidden_sizes=(), momentum=0.0, learning_rate=1.0, **changes)
    before = built(task).state_dict()
    model, outcome = train(aim, prepare(aim, part, None).task, Callbacks())
    assert outcome.steps == 1
    return torch.cat([len(rows) * (before[name] - value).flatten() for name, value in model.state_dict().items()])


def built(task):
    return build_model("mlp", input_shape=task.input_shape, num_classes=10, seed=0, hidden_sizes=(), activation="tanh")


def clipped_alone(task, row, weights, limit=0.9):
    """The gradient of one example's weighted loss, by autograd, clipped."""
    model, (inputs, labels) = built(task), task.train.tensors
    loss = weights[int(labels[row])] * F.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1])
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    return gradient * min(1.0, limit / float(gradient.norm()))


def test_a_weighted_update_is_the_sum_of_each_examples_own_weighted_and_clipped_gradient(digits):
    """Guarantee: the loss of an example follows from that example and from public weights alone."""
    rows, weights = list(range(12)), given_weights(GIVEN, digits.class_names)
    alone = [clipped_alone(digits, row, weights) for row in rows]
    assert torch.allclose(update_of(digits, rows), sum(alone), atol=1e-5)
    without = update_of(digits, rows[1:])
    assert torch.allclose(update_of(digits, rows) - without, alone[0], atol=1e-5)
    assert len({round(float(one.norm()), 4) for one in alone}) > 1  # not all of them are clipped


def test_ordinary_training_weighs_as_private_training_does(digits):
    rows, weights = list(range(8)), given_weights(GIVEN, digits.class_names)
    unclipped = [clipped_alone(digits, row, weights, limit=1e9) for row in rows]
    chosen = TensorDataset(*(tensor[rows] for tensor in digits.train.tensors))
    aim = replace(config(batch_size=8, hidden_sizes=(), momentum=0.0, learning_rate=1.0), privacy=None)
    before = built(digits).state_dict()
    model, _ = train(aim, prepare(aim, replace(digits, train=chosen), None).task, Callbacks())
    moved = torch.cat([8 * (before[name] - value).flatten() for name, value in model.state_dict().items()])
    assert torch.allclose(moved, sum(unclipped), atol=1e-5)


def test_the_largest_weight_is_one_and_only_ratios_matter():
    assert given_weights((("yes", 20.0),), ("no", "yes")) == (0.05, 1.0)
    assert given_weights((("no", 0.05),), ("no", "yes")) == (0.05, 1.0)
    assert balanced_weights((90.0, 10.0, 30.0)) == pytest.approx((1 / 9, 1.0, 1 / 3))


def test_counted_weights_are_charged_once_in_the_account_of_training(tmp_path):
    asked = config("counted", 0.5, Privacy(target_epsilon=2.0, max_grad_norm=1.0))
    finished = run(asked, tmp_path / "run")
    events = read_ledger(finished.directory.ledger).events
    (counted, once), *training = events
    assert isinstance(counted, Release)
    assert once == 1
    assert "a histogram of 11 public bins" in counted.query
    assert 0.49 < epsilon([(counted, 1)], 1e-5) <= 0.5
    assert epsilon(training, 1e-5) < finished.summary["epsilon"] == epsilon(events, 1e-5) <= 2.0
    kept = json.loads(finished.directory.class_counts.read_text())["counts"]
    assert finished.summary["weights_of_classes"] == pytest.approx(balanced_weights(kept))
    true = torch.bincount(finished.task.train.tensors[1], minlength=10)
    deviation = max(abs(noised - exact) for noised, exact in zip(kept, true.tolist(), strict=True))
    assert 0 < deviation < 8 * counted.noise_multiplier  # false alarm: below 1e-13
    write_report(finished.directory.path, finished.directory.path)
    assert all(check.held for check in check_report(finished.directory.path, finished.directory.path))
    rows = finished.directory.path / "report.html"
    assert "classes of training records, counted with noise before training" in rows.read_text()


def test_a_run_that_goes_on_counts_its_classes_no_second_time(tmp_path):
    asked = config("counted", 0.5, Privacy(target_epsilon=2.0, max_grad_norm=1.0), epochs=2)

    def stop(step):
        if step == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run(asked, tmp_path / "run", Reporter(on_step=stop))
    kept = tmp_path / "run" / "class_counts.json"
    counts = kept.read_bytes()
    kept.unlink()
    with pytest.raises(CheckpointError, match="weights of classes follow from it"):
        resume(tmp_path / "run")
    kept.write_bytes(counts)
    finished = resume(tmp_path / "run")
    releases = [event for event, _ in read_ledger(finished.directory.ledger).events if isinstance(event, Release)]
    assert len(releases) == 1
    assert finished.directory.class_counts.read_bytes() == counts


def test_a_report_finds_weights_that_do_not_follow_from_the_counts(tmp_path):
    finished = run(config("counted", 0.5, Privacy(noise_multiplier=3.0, max_grad_norm=1.0)), tmp_path / "run")
    summary = json.loads(finished.directory.summary.read_text())
    for change in ({"weights_of_classes": [1.0] * 10}, {"class_counts_noise_multiplier": 1.0}):
        finished.directory.summary.write_text(json.dumps({**summary, **change}))
        wrong = [row["what"] for row in run_facts(finished.directory.path)["agreement"] if not row["held"]]
        assert any("classes" in what for what in wrong)


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes:20", (("yes", 20.0),)), ("a:b:2, c:0.5", (("a:b", 2.0), ("c", 0.5))), ("counted", "counted")],
)
def test_weights_are_read_from_text_and_survive_json(text, value):
    assert CLASS_WEIGHTS.parse(text) == value
    assert values_from_text([f"class_weights={text}"]) == {"class_weights": value}
    asked = config(value, 0.1 if value == "counted" else None)
    assert config_from_json(json.loads(json.dumps(config_to_json(asked)))) == asked


@pytest.mark.parametrize(
    "value", [(), (("yes", 0.0),), (("yes", -1.0),), (("a", 1.0), ("a", 2.0)), "other", 3, ((1, 1.0),)]
)
def test_what_is_no_weight_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="weight"):
        config(value)


def test_a_class_that_the_task_lacks_is_refused_before_anything_is_spent(tmp_path):
    with pytest.raises(InvalidArgumentError, match="no class eleven"):
        run(config((("eleven", 2.0),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_with_weights_is_refused():
    with pytest.raises(InvalidArgumentError, match="go together"):
        config("counted")
    with pytest.raises(InvalidArgumentError, match="go together"):
        config(GIVEN, 0.1)
    with pytest.raises(InvalidArgumentError, match="weights are lost"):
        config(privacy=Privacy(noise_multiplier=1.0, max_grad_norm=1.0, clipping="automatic"))
    people = TaskOptions(person="patient", records_per_person=2)
    with pytest.raises(InvalidArgumentError, match="ε is to be for people"):
        config("counted", 0.1, task="csv", options=people)
    with pytest.raises(InvalidArgumentError, match="class_weights_epsilon must be below the target"):
        config("counted", 2.0, Privacy(target_epsilon=2.0, max_grad_norm=1.0))


def test_training_on_a_task_whose_weights_are_not_known_is_refused(digits):
    with pytest.raises(InvalidArgumentError, match="must be known before training"):
        train(config(), digits, Callbacks())


def test_a_budget_covers_the_counts_too(digits):
    privacy = Privacy(noise_multiplier=3.0, max_grad_norm=1.0)
    plain = epsilon(privacy.plan(400, len(digits.train), 1, 3.0).composition(), 1e-5)
    tight = replace(privacy, max_epsilon=1.01 * plain)
    check_budget(config(privacy=tight), digits)
    with pytest.raises(InvalidArgumentError, match="beyond max_epsilon"):
        check_budget(config("counted", 0.5, tight), digits)
