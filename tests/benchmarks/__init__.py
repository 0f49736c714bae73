"""Benchmarks: ratios within one run, to peers and to physical limits. None of them is a test."""
