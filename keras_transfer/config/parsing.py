"""Reading gin configurations, with plain sentences for what is wrong."""

import logging
import os
import tokenize

import gin

from keras_transfer.config import schema
from keras_transfer.errors import UserError


def parse(files, bindings):
    """Reads gin files, then single bindings, into gin's configuration.

    An included file is looked for beside the file that includes it, too.

    Args:
        files: paths of gin files; later ones win.
        bindings: str each, such as "train.seed = 1"; they win over the files.

    Raises:
        UserError: if a file is missing, or a line cannot be parsed or names
            something that does not exist, or binds what its parameter is not
            declared to take.
    """
    for folder in dict.fromkeys(map(os.path.dirname, files)):
        if folder:
            gin.add_config_file_search_path(folder)
    # Gin logs an error for every place where an include is not.
    logging.disable(logging.ERROR)
    try:
        gin.parse_config_files_and_bindings(
            files, bindings, finalize_config=False
        )
        schema.check_configuration()
        gin.finalize()
    except RecursionError as error:
        raise UserError(
            "The configuration cannot be used: a file includes itself, or "
            f"brackets are nested too deeply. Received: {' '.join(files)}"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        SyntaxError,
        ImportError,
        MemoryError,  # How Python's parser says that brackets are too deep.
        tokenize.TokenError,
    ) as error:
        received = [f"--gin_file={name}" for name in files]
        received += [f"--gin_bindings='{b}'" for b in bindings]
        raise UserError(
            f"The configuration cannot be used: {without_calls(error)}\n"
            f"Received: {' '.join(received)}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def without_calls(error):
    """Returns an error's text without the call stack that gin appends."""
    return str(error).split("\n  In call to configurable")[0].strip()
