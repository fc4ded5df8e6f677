"""A loaded model under patterns: its switch, its layers one at a time, and the losses they give."""
