"""Command lines that several tests type, and what is read of their output."""


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def search_arguments(checkpoints, text_file, out, **changes):
    options = {"model": checkpoints["glm_moe_dsa"], "dataset": text_file, "keep": 0.5, "window": 48, "windows": 3}
    options |= {"heldout": 2, "out": out} | changes
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
    return ["search", *(word for pair in given for word in pair)]
