"""Records to numbers, and numbers to files and terminal."""
