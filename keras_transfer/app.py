"""What the commands under `bin/` share: flags, gin, and plain sentences."""

import os
import sys

# Quiet the start-up banners of TensorFlow's C++ side; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging

from keras_transfer import config
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
    config.parse(GIN_FILE.value, GIN_BINDINGS.value)


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
            _fail(config.without_calls(error))
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}.")
        except RuntimeError as error:
            if "Required bindings" not in str(error):
                raise
            sentence = config.without_calls(error)
            _fail(f"The configuration lacks something. {sentence}")
        except KeyboardInterrupt:
            _fail("Interrupted; the same command resumes.", status=130)

    app.run(guarded)


def _fail(sentence, status=1):
    print(f"\nError: {sentence}", file=sys.stderr)
    sys.exit(status)
