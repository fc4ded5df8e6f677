"""How many parameters the model of a checkpoint has, by its config's numbers or by its modules."""
