"""Benchmarks of this project's own speed and memory; run as python -m benchmarks.NAME."""
