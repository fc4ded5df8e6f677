"""A loaded DSA model, its sites, and how to run it under any pattern; knows nothing of the search."""
