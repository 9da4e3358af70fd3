"""Measuring: accuracy, parity, latency. Statistics live here and nowhere else."""
