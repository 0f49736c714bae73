"""Benchmarks: ratios within one run, against peers and the physical limit. Nothing here is a test."""
