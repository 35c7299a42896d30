"""What people have their cells in: opened, and read by chunks of cells."""
