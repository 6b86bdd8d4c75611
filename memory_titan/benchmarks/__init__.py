"""Benchmarks: what a memory costs, beside the machine's own rate and beside other implementations."""
