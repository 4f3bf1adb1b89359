"""From the records of a study to figures, tables, fits and one report. Never imports jax."""
