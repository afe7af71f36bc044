"""What is done to whole stores: verify, describe, subset, merge, pack, compare."""
