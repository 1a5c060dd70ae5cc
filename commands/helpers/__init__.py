"""What the commands are made of. None of these can be called by itself."""
