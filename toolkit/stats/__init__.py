"""Intervals, tests and distances, as pure functions. Every figure that Edgekit reports gets its uncertainty here and nowhere else."""
