"""Reports: one file per form that people or programs read."""
