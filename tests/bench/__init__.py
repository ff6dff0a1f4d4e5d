"""Benchmarks: ratios in one run against named peers. `make bench` prints the tables."""
