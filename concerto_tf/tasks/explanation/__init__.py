"""What `explain` is made of: contributions to the embedding, expression, attention."""
