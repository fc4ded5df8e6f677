"""Tries on a loaded model, before a search, whether what will be measured means anything."""
