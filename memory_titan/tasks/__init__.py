"""Tasks that a memory is trained and tested on: one file a task, whose docstring draws a sample."""
