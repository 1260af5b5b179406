"""Copies a configuration that is shipped to the working directory, to edit.

    bin/init study_folder

Without a name it lists them. What a copy includes or names is found beside it
or, if it is not there, among those that are shipped.
"""

import difflib
import itertools
import pathlib
import re
import textwrap

from keras_transfer import app, files
from keras_transfer.config import parsing
from keras_transfer.errors import UserError

_WIDTH = 55


def main(*names):
    """Copies each, or lists all.

    Args:
        *names: str each, with or without ".gin".

    Raises:
        UserError: if there is none of that name, or one is here already.
    """
    shipped = {path.stem: path for path in parsing.SHIPPED.glob("*.gin")}
    if not names:
        print(f"{app.command('init')} NAME copies one of these:\n")
        width = max(map(len, shipped))
        for name in sorted(shipped):
            print(f"  {name:<{width}}  {_about(shipped[name])}")
    for name in names:
        name = name.removeprefix("gin/").removesuffix(".gin")
        if name not in shipped:
            near = difflib.get_close_matches(name, shipped, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"No configuration of this name is shipped.{hint} Received: "
                f"{name}. {app.command('init')} without a name lists them."
            )
        _copy(shipped[name])


def _about(source):
    """Returns how the second paragraph of a file's head begins."""
    rest = source.read_text(encoding="utf-8").partition("\n#\n")[2]
    lines = itertools.takewhile(lambda t: t[:1] == "#", rest.splitlines())
    text = " ".join(line.lstrip("# ") for line in lines)
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")


def _copy(source):
    path = pathlib.Path(source.name)
    if path.exists() or path.is_symlink():
        raise UserError(
            f"{path} exists already and is kept as it is. Move or remove it, "
            "or do this in another directory."
        )
    text = source.read_text(encoding="utf-8")
    # The command at its head, of the copy and as it is called here.
    text = text.replace(f"--gin_file=gin/{path}", f"--gin_file={path}")
    text = re.sub(r"\bbin/(\w+)", lambda match: app.command(match[1]), text)
    files.write_text(path, text)
    command = text.partition("\n#\n")[0].replace("\n#", "\n")
    print(f"{path} is yours to edit. Then:\n\n   {command.lstrip('#')}")
