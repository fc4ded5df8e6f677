"""Long windows in bounded memory: indexers in chunks, and attention over the selected tokens only."""
