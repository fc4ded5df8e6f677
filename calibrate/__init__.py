"""Text to frozen windows of token ids; knows nothing of models or patterns."""
