"""The plan: its sections, its file, how it is made from a search, cut, and compared with an older one."""
