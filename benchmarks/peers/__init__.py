"""What others offer for the same work: one script each, which needs nothing of this project but the card."""
