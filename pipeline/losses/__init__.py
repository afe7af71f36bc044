"""What a student minimizes: the TIE-KD loss, response losses, relative losses, likelihood."""
