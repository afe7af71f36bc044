"""Opening a store and reading samples from it."""
