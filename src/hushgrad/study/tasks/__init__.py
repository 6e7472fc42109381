"""What can be trained on: a name, the options it takes, and the data it gives."""

from hushgrad.study.tasks.registry import TASKS, load_task
from hushgrad.study.tasks.task import Recipe, Task, TaskOptions

__all__ = ["TASKS", "Recipe", "Task", "TaskOptions", "load_task"]
