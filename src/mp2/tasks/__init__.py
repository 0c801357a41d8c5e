"""What a task is, in text only."""
