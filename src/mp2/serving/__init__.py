"""Answering many tasks with one encoder."""
