"""The pipeline: plans, steps through store and worker, and the public verbs."""
