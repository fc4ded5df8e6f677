"""Layers as a stream: their weights read as stored, made plain on the device, and there while windows pass."""
