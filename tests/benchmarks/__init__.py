"""Benchmarks: ratios within one run, against peers and the physical limit. None is a test."""
