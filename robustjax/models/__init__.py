"""The model family in Flax NNX: definitions, registry, loading, and the victim that attacks query."""
