"""A plan's fingerprint, which a running server is held against: what it says, how its prefixes are chosen, the test."""
