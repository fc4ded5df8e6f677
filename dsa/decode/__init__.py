"""How long a decode step takes behind a long cache: the cache as a prompt leaves it, and a clock for steps."""
