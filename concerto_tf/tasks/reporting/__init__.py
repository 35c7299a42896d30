"""What the commands' pages say, from their results."""
