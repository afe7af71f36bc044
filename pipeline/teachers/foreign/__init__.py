"""Teachers in a Python environment of their own: a worker process there, and its model here."""
