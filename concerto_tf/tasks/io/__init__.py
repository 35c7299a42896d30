"""Reading of cells for a task, and writing of what it found."""
