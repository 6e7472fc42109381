"""The tasks by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hushgrad.arguments import one_of, positive_number
from hushgrad.study.augmentation import Shifts
from hushgrad.study.tasks import csv_table, digits, images, mnist, text
from hushgrad.study.tasks.task import Recipe, Task, TaskOptions


@dataclass(frozen=True, slots=True)
class Entry:
    """How a task is loaded, and the settings that suit it, by the ε for which they were found.

    `shifts` says what random views its images have; None for what is no image. `others` holds settings for models that
    the task does not take by itself, by their names.
    """

    load: Callable[[TaskOptions], Task]
    recipes: Mapping[float, Recipe]
    shifts: Shifts | None = None
    others: Mapping[str, Mapping[float, Recipe]] = field(default_factory=dict)

    def recipes_of(self, model: str | None) -> Mapping[float, Recipe]:
        """Return the settings for a model, by ε; those of the task's own model where it has none for that one."""
        return next((found for name, found in self.others.items() if name == model), self.recipes)

    def nearest(self, epsilon: float | None, model: str | None = None) -> float:
        """Return the ε of `recipes_of(model)` that is nearest to `epsilon` by ratio; the smaller of two as near.

        None stands for a run that aims at no ε, by a noise multiplier or without privacy: it counts as
        STANDARD_EPSILON. Raises InvalidArgumentError unless `epsilon` is greater than 0.
        """
        wanted = math.log(STANDARD_EPSILON if epsilon is None else positive_number("target_epsilon", epsilon))
        return min(sorted(self.recipes_of(model)), key=lambda known: abs(math.log(known) - wanted))

    def recipe_at(self, epsilon: float | None, model: str | None = None) -> Recipe:
        """Return the settings found for the ε nearest to `epsilon`, as `nearest` chooses it."""
        return self.recipes_of(model)[self.nearest(epsilon, model)]

    @property
    def recipe(self) -> Recipe:
        """The settings at ε = STANDARD_EPSILON."""
        return self.recipe_at(None)


STANDARD_EPSILON = 3.0

TASKS: dict[str, Entry] = {
    "digits": Entry(digits.load, digits.RECIPES, Shifts(1), {"scatter-linear": digits.FEATURES_RECIPES}),
    "mnist": Entry(mnist.load, mnist.RECIPES, Shifts(2), {"cnn": mnist.CNN_RECIPES}),
    "csv": Entry(csv_table.load, csv_table.RECIPES),
    "text": Entry(text.load, text.RECIPES, others=text.TUNED_RECIPES),
    "images": Entry(images.load, images.RECIPES, Shifts(4, mirrored=True), {"wrn": images.WRN_RECIPES}),
}


def load_task(name: str, options: TaskOptions) -> Task:
    """Return the task called `name`. Raises InvalidArgumentError or TaskDataError; nothing is ever downloaded."""
    return TASKS[one_of("task", name, tuple(TASKS))].load(options)
