"""What a user can ask of launch.py, one file each."""
