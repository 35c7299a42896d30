"""How cells come into a task, and how what it found goes out."""
