"""What Edgekit costs, held against bars: ``python -m benchmarks``."""
