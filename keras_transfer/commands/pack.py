r"""Packs a run or a study into one archive, to be shared.

    bin/pack runs/pt_digits --license=CC-BY-4.0 \
        --data='scikit-learn, load_digits (BSD-3-Clause)'

The zip file holds weights, tables, figures, the report, a card (README.md) that
says what this is and on what terms, and SHA256SUMS. A study's tables are there
once more in tables.parquet, all in one. TensorBoard's events, which show
images, and logs stay at home; paths that stand in config.gin and data.json go
along.
"""

import pathlib

from absl import flags

from keras_transfer import app, environment
from keras_transfer.errors import UserError


def define_flags():
    """Defines what only this command takes."""
    app.define_path(
        "output", "The archive; NAME.zip without it.", required=False
    )
    flags.DEFINE_string("license", None, "On what terms others may use it.")
    flags.DEFINE_string(
        "data", None, "Where the images come from, and on what terms."
    )


def main(*directories, output, license, data):
    """Packs, and prints the archive's hash."""
    if len(directories) != 1:
        raise UserError(
            "One directory is packed at a time. Received: "
            f"{' '.join(directories) or 'none'}. For example: "
            f"{app.command('pack')} runs/pt_digits"
        )
    (directory,) = directories
    environment.prepare_keras()
    from keras_transfer.packing import pack

    output = output or f"{pathlib.Path(directory).resolve().name}.zip"
    digest = pack(directory, output, license, data)
    print(
        f"{output}  SHA-256 {digest}\n"
        f"  unpack it:  {app.command('unpack')} {output} --sha256={digest}"
    )
    for name, value in (("license", license), ("data", data)):
        if not value:
            print(f'  Its card says "not stated" of --{name}.')
