"""Attacks: a common frame of static shapes, and one file for each attack."""
