"""A plan as pages and figures for people."""
