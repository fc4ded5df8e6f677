"""Asks web servers that anyone may run: in bounded time and bytes, at no other host, and with no key shown."""
