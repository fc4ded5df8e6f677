"""Trains kept indexers against the attention of all layers that they serve; knows no plans and no files."""
