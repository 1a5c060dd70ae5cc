"""The messages between actors and the learner, their codec and transport, and definitions that both sides share."""
