import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import Privacy, max_grad_norm_for, suggested_run
from hushgrad.study.tasks import TASKS
from hushgrad.study.tasks.registry import STANDARD_EPSILON, Entry
from hushgrad.study.tasks.task import Recipe


def recipe(learning_rate):
    return Recipe(model="mlp", batch_size=1, epochs=1, learning_rate=learning_rate, max_grad_norm=learning_rate)


THREE = Entry(lambda options: pytest.fail("not loaded here"), {8.0: recipe(8), 1.0: recipe(1), 3.0: recipe(3)})


@given(st.floats(1e-3, 1e3))
def test_settings_are_those_of_the_epsilon_nearest_by_ratio(epsilon):
    chosen = THREE.nearest(epsilon)
    assert THREE.recipe_at(epsilon) is THREE.recipes[chosen]
    distances = {known: abs(math.log(known / epsilon)) for known in THREE.recipes}
    assert distances[chosen] <= min(distances.values()) + 1e-12


def test_a_run_that_aims_at_no_epsilon_gets_the_settings_of_the_standard_one():
    assert THREE.recipe is THREE.recipe_at(None) is THREE.recipes[STANDARD_EPSILON]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_is_none_is_refused(epsilon):
    with pytest.raises(InvalidArgumentError, match="target_epsilon: must be"):
        THREE.recipe_at(epsilon)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_settings_for_the_standard_epsilon(task):
    assert STANDARD_EPSILON in TASKS[task].recipes


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("task", TASKS)
def test_a_suggested_run_has_the_settings_of_its_target_epsilon(task, epsilon):
    found = TASKS[task].recipe_at(epsilon)
    assert max_grad_norm_for(task, epsilon) == found.max_grad_norm
    config = suggested_run(task, privacy=Privacy(target_epsilon=epsilon, max_grad_norm=found.max_grad_norm))
    assert (config.batch_size, config.epochs, config.learning_rate, config.model, config.optimizer) == (
        (found.batch_size, found.epochs, found.learning_rate, found.model, found.optimizer)
    )


@pytest.mark.parametrize("task", TASKS)
def test_ordinary_training_and_a_noise_multiplier_get_the_standard_settings(task):
    found = TASKS[task].recipe
    for privacy in (None, Privacy(noise_multiplier=1.0, max_grad_norm=1.0)):
        config = suggested_run(task, privacy=privacy)
        assert (config.batch_size, config.learning_rate) == (found.batch_size, found.learning_rate)


def test_a_model_that_the_user_names_gets_the_settings_found_for_it_and_else_those_of_the_task():
    named = suggested_run("mnist", privacy=None, model="cnn")
    own = suggested_run("mnist", privacy=None)
    other = suggested_run("mnist", privacy=None, model="resnet")
    assert (named.model, named.learning_rate) == ("cnn", TASKS["mnist"].others["cnn"][3.0].learning_rate)
    assert own.model == TASKS["mnist"].recipe.model == "scatter-linear"
    assert (other.model, other.learning_rate) == ("resnet", own.learning_rate)


@pytest.mark.parametrize("model", ["cnn", "scatter-linear"])
def test_a_named_model_has_the_settings_of_its_target_epsilon(model):
    for epsilon in (1.0, 8.0):
        found = TASKS["mnist"].recipe_at(epsilon, model)
        config = suggested_run(
            "mnist",
            privacy=Privacy(target_epsilon=epsilon, max_grad_norm=max_grad_norm_for("mnist", epsilon, model)),
            model=model,
        )
        assert (config.model, config.batch_size, config.learning_rate) == (model, found.batch_size, found.learning_rate)
