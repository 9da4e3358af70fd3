"""Measuring: accuracy, parity, latency, memory, profiles, envelopes."""
