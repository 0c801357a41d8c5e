"""Methods, stages, and how a task is tuned to an adapter."""
