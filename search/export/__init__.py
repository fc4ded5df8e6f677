"""A plan as settings that engines take."""
