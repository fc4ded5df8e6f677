"""Every option of the command line, a line each; ``--write`` freezes them."""

import sys
from pathlib import Path

import typer

from indexcache.cli import app
from indexcache.recipes.schema import FIELDS

OPTIONS = Path(__file__).parent / "assets" / "options.txt"


def options_text():
    """Command, flags, default and environment variable of each option, and each field's own default."""
    lines = []
    for command in typer.main.get_command(app).commands.values():
        for option in command.params:
            if option.param_type_name != "option":
                continue
            flags = "/".join((*option.opts, *option.secondary_opts))
            automatic = f"INDEXCACHE_{command.name}_{option.name}".upper() if option.allow_from_autoenv else "-"
            default = FIELDS[option.name].default if option.name in FIELDS else option.default
            lines.append(f"{command.name} {flags} {default!r} {option.envvar or automatic}\n")
    return "".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        OPTIONS.write_text(options_text(), "utf-8")
    elif options_text() != OPTIONS.read_text("utf-8"):
        sys.exit("the options are not those of the golden file")
