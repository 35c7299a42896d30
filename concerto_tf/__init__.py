"""Contrastive learning on single cells, from counts to embeddings."""
