"""What commands share: options, preparation, identity, measuring, and one process's session at a run."""
