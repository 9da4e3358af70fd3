"""Routes: one file per way from one format to another."""
