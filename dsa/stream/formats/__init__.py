"""Formats of quantised weights: which one it is, whether the tensors keep to it, and plain weights from them."""
