"""The formats that weights are stored in: which it is, whether the tensors keep to it, and plain weights from them."""
