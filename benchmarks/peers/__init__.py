"""Other projects doing the same work: one script for each, which imports nothing of this project except the card."""
