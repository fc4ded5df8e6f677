"""One file a command: the only room that knows text, model and search together."""
