"""What a run leaves in its folder, and how a killed one goes on."""
