"""Which indexers to drop: losses as plain numbers in, a plan and its report out; imports no torch."""
