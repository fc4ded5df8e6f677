"""What the report draws: the curve, the overlap of selections and prefill times, as SVG."""
