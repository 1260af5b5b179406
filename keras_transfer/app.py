"""What the commands under `bin/` share: flags, gin, and plain sentences."""

import logging as standard_logging
import os
import sys

# Quiet the start-up banners of TensorFlow's C++ side; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gin
from absl import app, flags, logging

from keras_transfer.errors import UserError

GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "Path of a gin file; may be repeated, later ones win."
)
GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings",
    [],
    "One gin binding, such as 'train.seed = 1'; may be repeated, wins over "
    "the files.",
)


def parse_gin():
    """Reads the configuration named by --gin_file and --gin_bindings.

    Raises:
        UserError: if a file is missing, or a line cannot be parsed or names
            something that does not exist.
    """
    if not GIN_FILE.value:
        raise UserError(
            "No configuration was given. Name one with --gin_file, for example "
            "--gin_file=gin/p_mnist.gin; the directory gin/ holds them."
        )
    for name in GIN_FILE.value:
        # So that an include is found beside the file that includes it.
        gin.add_config_file_search_path(os.path.dirname(name))
    # Gin logs an error for every place where an include is not.
    standard_logging.disable(standard_logging.ERROR)
    try:
        gin.parse_config_files_and_bindings(GIN_FILE.value, GIN_BINDINGS.value)
    except (OSError, ValueError, KeyError, SyntaxError, ImportError) as error:
        received = [f"--gin_file={name}" for name in GIN_FILE.value]
        received += [f"--gin_bindings='{b}'" for b in GIN_BINDINGS.value]
        raise UserError(
            f"The configuration cannot be used: {_message(error)}\n"
            f"Received: {' '.join(received)}"
        ) from error
    finally:
        standard_logging.disable(standard_logging.NOTSET)


def run(main):
    """Runs a command; what the user can mend ends in a sentence and status 1.

    Args:
        main: function of no arguments, called after the flags are parsed.
    """

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            _fail(f"Flags begin with --. Received: {' '.join(argv[1:])}")
        try:
            main()
        except UserError as error:
            _fail(_message(error))
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}.")
        except RuntimeError as error:
            if "Required bindings" not in str(error):
                raise
            _fail(f"The configuration lacks something. {_message(error)}")
        except KeyboardInterrupt:
            _fail("Interrupted; the same command resumes.", status=130)

    app.run(guarded)


def _message(error):
    """Returns an error's text without the call stack that gin appends."""
    return str(error).split("\n  In call to configurable")[0].strip()


def _fail(sentence, status=1):
    print(f"\nError: {sentence}", file=sys.stderr)
    sys.exit(status)
