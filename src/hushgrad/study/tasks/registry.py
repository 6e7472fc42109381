"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hushgrad.arguments import one_of
from hushgrad.study.tasks import csv_table, digits, images, mnist, text
from hushgrad.study.tasks.task import Recipe, Task, TaskOptions


@dataclass(frozen=True, slots=True)
class Entry:
    """How a task is loaded, and the settings that suit it."""

    load: Callable[[TaskOptions], Task]
    recipe: Recipe


TASKS: dict[str, Entry] = {
    "digits": Entry(digits.load, digits.RECIPE),
    "mnist": Entry(mnist.load, mnist.RECIPE),
    "csv": Entry(csv_table.load, csv_table.RECIPE),
    "text": Entry(text.load, text.RECIPE),
    "images": Entry(images.load, images.RECIPE),
}


def load_task(name: str, options: TaskOptions) -> Task:
    """Return the task called `name`. Raises InvalidArgumentError or TaskDataError; nothing is ever downloaded."""
    return TASKS[one_of("task", name, tuple(TASKS))].load(options)
