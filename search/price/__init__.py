"""What a plan is worth to whoever serves it: memory, seconds for a mix of requests, and the cheapest budget."""
