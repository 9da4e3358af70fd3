"""Checks: evidence held against budgets."""
