"""Samples: which ones train, which calibrate, which judge."""
