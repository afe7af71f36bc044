"""How a store is written: staged, journaled, verified, renamed."""
