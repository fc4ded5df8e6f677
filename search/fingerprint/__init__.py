"""A plan's fingerprint: what known patterns predict after chosen prefixes, and the test of a server's answers."""
