"""Benchmarks: each prints machine, versions, seed and settings, and compares within one run."""
