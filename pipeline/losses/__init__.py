"""Training losses: TIE-KD, response losses, relative losses, likelihood."""
