"""Examples that the pages use."""
