"""The few-shot bench: grid, statistics, tables and figures."""
