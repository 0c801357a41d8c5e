"""mp2: multi-task pre-trained modular prompts for few-shot Chinese text tasks."""
