"""States of windows between layers: where they wait in a sweep, and which are kept for later ones."""
