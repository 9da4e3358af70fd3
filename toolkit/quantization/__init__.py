"""Quantizers: one file per format."""
