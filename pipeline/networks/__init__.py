"""Student networks: encoders, decoders, prediction, and the files of a run."""
