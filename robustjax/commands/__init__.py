"""Commands that run one stage by itself, in a workdir of its own."""
