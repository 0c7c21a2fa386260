"""The calls of Replicate's API, as tables: what a row says is what is served, checked and described."""
