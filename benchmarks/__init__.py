"""Timings, as paired ratios: ``make bench`` writes docs/benchmarks.md. Nothing here is a test."""
