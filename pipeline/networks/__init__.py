"""Student networks: encoders, decoder, the DPM head, and how a trained one lies on disk."""
