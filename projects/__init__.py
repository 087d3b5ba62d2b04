"""Experiments with their own configs, runners and results; not in the wheel."""
