"""The genes of a modality: their order, names, species, statistics, and which a model looks at."""
