"""One module for each question a biologist asks of an embedding."""
