"""Tasks, prompts, tokens and batches on the host: numpy and tokenizers, never jax."""
