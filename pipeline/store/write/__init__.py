"""Write a store: stage, journal, verify, rename."""
