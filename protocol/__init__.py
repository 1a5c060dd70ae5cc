"""What actors and the learner say to each other: messages, codec, transport, and the identities both count by."""
