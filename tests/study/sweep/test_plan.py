import csv
from pathlib import Path

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.config_json import config_from_json, config_to_json
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.sweep.plan import Grid, Subject, SweepPlan, config_of, make_plan
from hushgrad.study.sweep.sweep_file import plan_from, read_sweep, shipped
from hushgrad.study.tasks import TASKS, TaskOptions

RESULTS = Path(__file__).parents[3] / "docs" / "results"
DIGITS = Subject("digits", task="digits")


def test_a_plan_holds_every_point_with_ordinary_training_and_every_seed():
    grid = Grid(noise_multipliers=(0, 1), max_grad_norms=(0.5, 2), seeds=(0, 1))
    plan = make_plan("p", (DIGITS,), grid)
    assert len(plan.runs) == 2 * 2 * 3
    assert len({run.name for run in plan.runs}) == len(plan.runs)
    aims = [(run.series, run.aim, run.seed) for run in plan.runs[:3]]
    assert aims == [("digits, C=0.5", "ordinary", 0), ("digits, C=0.5", "σ=0", 0), ("digits, C=0.5", "σ=1", 0)]
    clipped = [config_of(run).privacy for run in plan.runs if run.aim == "σ=1"]
    assert [privacy.max_grad_norm for privacy in clipped] == [0.5, 2, 0.5, 2]


def test_a_sweep_sets_clip_rule_and_noise_by_name():
    subject = Subject("digits", task="digits", settings={"clipping": "automatic", "noise": "grid"})
    plan = make_plan("p", (subject,), Grid(noise_multipliers=(1,)))
    (privacy,) = {config_of(run).privacy for run in plan.runs if run.aim == "σ=1"}  # one for each seed
    assert (privacy.clipping, privacy.noise) == ("automatic", "grid")


def test_settings_survive_the_way_to_json_and_back_unchanged(tmp_path):
    """Guarantee: settings survive the way to JSON and back unchanged."""
    options = TaskOptions(data=tmp_path, classes=("a", "b"), bounds=(("x", 0.0, 1.0),))
    for task in TASKS:
        for privacy in (None, Privacy(target_epsilon=3.0, max_grad_norm=0.5)):
            config = suggested_run(task, privacy=privacy, options=options)
            assert config_from_json(config_to_json(config)) == config


def test_a_plan_says_whether_somebody_chose_the_batch_size():
    """Where nobody did, the run has batches of at most a fourth of its data, as one of hushgrad train has."""
    named = Subject("named", task="digits", settings={"batch_size": 700})
    for subject, grid, is_fitted in (
        (DIGITS, Grid(noise_multipliers=(1,)), True),
        (DIGITS, Grid(noise_multipliers=(1,), batch_sizes=(700,)), False),
        (named, Grid(noise_multipliers=(1,)), False),
    ):
        assert {run.job["fit_batch_size"] for run in make_plan("p", (subject,), grid).runs} == {is_fitted}


def test_a_plan_survives_the_way_to_json_and_back():
    plan = make_plan("p", (DIGITS, Subject("own", function="m:f")), Grid(noise_multipliers=(0, 1)))
    again = SweepPlan.from_json(plan.to_json())
    assert again == plan
    assert again.fingerprint() == plan.fingerprint()


def test_a_plan_whose_run_would_leave_its_folder_is_refused():
    value = make_plan("p", (DIGITS,), Grid(noise_multipliers=(1,))).to_json()
    value["runs"][0]["name"] = "../outside"
    with pytest.raises(InvalidArgumentError, match="cannot be a folder"):
        SweepPlan.from_json(value)


def test_hostile_labels_become_plain_folder_names():
    plan = make_plan("p", (Subject("<script>../\x1b[31m", task="digits"),), Grid(noise_multipliers=(1,)))
    assert all(set(run.name) <= set("script31mordinarysigma=1seed=-0.2") for run in plan.runs)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"noise_multipliers": [1], "target_epsilons": [1]}, "and not both"),
        ({"noise_multipliers": []}, "must have noise_multipliers or"),
        ({"noise_multipliers": [-1]}, "noise_multipliers: must be >= 0"),
        ({"noise_multipliers": [1, 1]}, "name each value once"),
        ({"noise_multipliers": ["1"]}, "must be a real number"),
        ({"noise_multipliers": 1}, "must be a list"),
        ({"noise_multipliers": [1], "seeds": 0}, "at least one seed"),
        ({"noise_multipliers": [1], "sigmas": [1]}, "names are unknown: sigmas"),
        ({"noise_multipliers": [1], "settings": {"seed": 1}}, "names are unknown: seed"),
        ({"noise_multipliers": [1], "settings": {"epochs": 0}}, "epochs: must be >= 1"),
        ({"noise_multipliers": [1], "subjects": []}, r"at least one \[\[subjects\]\]"),
        ({"noise_multipliers": [1], "subjects": [{"task": "digits"}, {"task": "digits"}]}, "different labels"),
        ({"noise_multipliers": [1], "subjects": [{"task": "a", "function": "m:f"}]}, "must name a task or a function"),
        ({"noise_multipliers": [1], "subjects": [{"function": "m:f", "epochs": 1}]}, "a function takes no epochs"),
        ({"target_epsilons": [1], "subjects": [{"function": "m:f"}]}, "target_epsilons are for tasks"),
        ({"noise_multipliers": [1], "subjects": [{"task": "no"}]}, "task: must be one of"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(value, said):
    with pytest.raises(InvalidArgumentError, match=said):
        plan_from({"subjects": [{"task": "digits"}], **value})


def test_a_sweep_file_that_is_not_there_or_not_toml_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"neither a file nor one of .*mnist"):
        read_sweep("absent")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(InvalidArgumentError, match="not valid TOML"):
        read_sweep(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize("name", shipped())
def test_shipped_sweeps_are_plans(name, tmp_path):
    assert read_sweep(name, tmp_path).runs


@pytest.mark.parametrize(
    ("table", "sources"),
    [
        ("digits-settings", [RESULTS / "digits-settings.toml"]),
        ("adult-settings", [RESULTS / "adult-settings.toml"]),
        ("mnist-settings", [RESULTS / "mnist-settings-1-and-3.toml", RESULTS / "mnist-settings-8.toml"]),
        ("mnist-views", [RESULTS / "mnist-views.toml"]),
        ("mnist", ["mnist"]),
    ],
)
def test_the_documented_tables_are_those_of_their_sweep_files(table, sources, tmp_path):
    planned = [run.name for source in sources for run in read_sweep(str(source), tmp_path).runs]
    with (RESULTS / f"{table}.csv").open(encoding="utf-8") as lines:
        assert sorted(row["name"] for row in csv.DictReader(lines)) == sorted(planned)


def test_the_mnist_sweep_is_three_tasks_at_seven_noises_three_seeds_and_ordinary_training(tmp_path):
    plan = read_sweep("mnist", tmp_path)
    assert len(plan.runs) == 3 * 3 * (7 + 1)
    assert {run.label for run in plan.runs} == {"0 or 1", "3 or 8", "all ten digits"}
