"""What distilled indexers change: which of them stay, and the plan of the checkpoint that they are written to."""
