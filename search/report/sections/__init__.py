"""The parts of the report: what each says of a plan, in words and figures."""
