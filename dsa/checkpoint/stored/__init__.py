"""What lies in a checkpoint's files: found, hashed, and whether it may be loaded."""
