"""Stage two: a source and a store -> a trained student."""
