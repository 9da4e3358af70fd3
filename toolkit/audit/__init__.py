"""Audit: what is really in a model file."""
