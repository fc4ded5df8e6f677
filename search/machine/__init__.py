"""What a search takes on a machine that need not be here: where its weights lie, and what then waits."""
