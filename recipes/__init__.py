"""YAML recipes for searches, and the embedded tiny model."""
