"""The length of a training, and its optimizer."""
