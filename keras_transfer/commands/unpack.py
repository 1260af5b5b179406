"""Unpacks an archive that `pack` has made, after checking it.

    bin/unpack pt_digits.zip
    bin/unpack pt_digits.zip --output=runs/theirs --sha256=HASH

Every file is compared with its hash in the archive before any is put in place.
Links, paths that lead elsewhere and files of other kinds are refused. --sha256,
which `pack` printed, shows that the archive is the one that was sent.
"""

import pathlib

from absl import flags

from keras_transfer import app
from keras_transfer.errors import UserError


def define_flags():
    """Defines what only this command takes."""
    app.define_path(
        "output",
        "Directory to write; must not exist. Without it, the archive's name.",
        required=False,
    )
    flags.DEFINE_string("sha256", None, "The hash the archive must have.")


def main(*archives, output, sha256):
    """Unpacks, and says what there is."""
    from keras_transfer.unpacking import CARD, unpack

    if len(archives) != 1:
        raise UserError(
            "One archive is unpacked at a time. Received: "
            f"{' '.join(archives) or 'none'}. For example: "
            f"{app.command('unpack')} pt_digits.zip"
        )
    (archive,) = archives
    output = output or pathlib.Path(archive).with_suffix("").name
    unpack(archive, output, sha256)
    print(f"{output}: complete. {output}/{CARD} says what it is.")
