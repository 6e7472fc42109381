"""Complete training runs on real data: tasks, models, one run as a function, and what a run leaves behind."""
