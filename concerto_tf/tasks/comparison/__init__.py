"""The tables and figures of `compare`: composition, genes and gene sets by cell type."""
