"""indexcache: finds which layers of a DeepSeek Sparse Attention model can drop their indexer."""

__version__ = "0.1.0"
