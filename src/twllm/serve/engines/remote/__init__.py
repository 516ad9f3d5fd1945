"""Other servers as engines."""
