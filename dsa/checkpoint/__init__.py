"""A checkpoint before it runs: its config, sites, files and weights, and how it is loaded."""
