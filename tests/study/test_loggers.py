import json
import math
from dataclasses import dataclass, field, replace

import pytest

from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.loggers import CallableLogger, JsonLines, Metric, TensorBoard, hand_over, metrics_of
from hushgrad.study.outcome import Measurement
from hushgrad.study.run import run

MEASURED = Measurement(4, 1, 2.0, 0.5, 0.75, math.inf, 100.0, 1.0)


@dataclass
class Memory:
    local: bool
    taken: list = field(default_factory=list)
    closed: bool = False

    def log(self, step, metrics):
        self.taken.append((step, dict(metrics)))

    def close(self):
        self.closed = True


def test_every_metric_says_whether_the_guarantee_covers_it():
    metrics = metrics_of(MEASURED)
    assert {name for name, metric in metrics.items() if metric.covered} == {
        "epoch",
        "test_accuracy",
        "epsilon",
        "lost_steps",
    }
    assert "step" not in metrics
    assert "test_accuracy" not in metrics_of(replace(MEASURED, test_accuracy=None))


def test_a_logger_that_is_not_local_gets_no_metric_that_the_guarantee_leaves_out():
    """Guarantee: a logger that is not local gets no metric that the guarantee leaves out, unless asked for."""
    far, near = Memory(local=False), Memory(local=True)
    for logger in (far, near):
        hand_over(logger, 4, metrics_of(MEASURED))
    assert set(far.taken[0][1]) == {"epoch", "test_accuracy", "epsilon", "lost_steps"}
    assert {"loss", "train_accuracy", "seconds"} < set(near.taken[0][1])
    hand_over(far, 4, metrics_of(MEASURED), share_uncovered=True)
    assert "loss" in far.taken[1][1]


def test_a_run_hands_its_measurements_to_its_loggers_and_closes_them(tmp_path):
    sent = []
    memory, lines = Memory(local=True), JsonLines(tmp_path / "metrics")
    forward = CallableLogger(lambda values, step: sent.append((step, values)))
    config = suggested_run("digits", privacy=Privacy(noise_multiplier=3.0, max_grad_norm=1.0))
    config = replace(config, batch_size=400, epochs=1)
    finished = run(config, tmp_path / "run", loggers=(memory, lines, forward))
    assert memory.closed
    assert memory.taken[-1][1]["epsilon"].value == finished.summary["epsilon"]
    written = [json.loads(line) for line in (tmp_path / "metrics").read_text().splitlines()]
    assert [line["step"] for line in written] == [step for step, _ in memory.taken] == [step for step, _ in sent]
    assert "loss" in written[0]["not_covered"]
    assert all("loss" not in values for _, values in sent)


def test_tensorboard_gets_both_groups_apart(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path)
    logger.log(3, {"loss": Metric(2.0, False), "epsilon": Metric(1.5, True), "far": Metric(math.inf, True)})
    logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["not_covered/loss", "covered/epsilon"]
    assert [(event.step, event.value) for event in events.Scalars("covered/epsilon")] == [(3, 1.5)]
