"""Gives a changed plan the checksum that its content would have, so that other checks are reached."""

import hashlib
import json


def sealed(document):
    """The plan's text, with the checksum of its content written down anew."""
    if not isinstance(document, dict):
        return json.dumps(document)
    content = {name: value for name, value in document.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"checksum": digest[:16]})
