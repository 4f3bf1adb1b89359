"""Starting commands of robustjax elsewhere, and looking after them; nothing here imports JAX."""
