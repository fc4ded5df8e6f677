"""Which site to share next: the strategies, each a pure function over measured losses."""
