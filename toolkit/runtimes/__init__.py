"""Runtimes: one file per engine that executes model files."""
