"""Layers as a stream: weights come to the device a layer at a time, from its own memory, the host's, or files."""
