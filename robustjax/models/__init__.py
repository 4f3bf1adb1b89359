"""The model family in Flax NNX: definitions, registry, loading, and the victim."""
