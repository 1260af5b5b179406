"""What the commands under `bin/` share: flags, gin, and plain sentences."""

import contextlib
import json
import os
import re
import signal
import sys

# Quiet the start-up banners of TensorFlow's C++ side; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging

from keras_transfer import config, files, memory
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


# The text of an operating system's error about a file, or about two.
_OF_A_FILE = re.compile(r"\[Errno \d+\] (?P<what>.+?): (?P<file>['\"].+['\"])")
# What a shell reports of a process that ends by SIGTERM: 128 + 15.
STOPPED = 143


class _Terminated(BaseException):
    """SIGTERM has come: the machine is wanted back."""


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

    No other command works in its --work_dir meanwhile. On SIGTERM it stops
    within seconds, with status 143; on Ctrl-C, with 130. The same command then
    resumes.

    Args:
        main: function of no arguments, called after the flags are parsed.
    """

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            _fail(f"Flags begin with --. Received: {' '.join(argv[1:])}")
        signal.signal(signal.SIGTERM, _terminate)
        memory.keep_freed()
        try:
            with _work_dir_held():
                main()
        except UserError as error:
            _fail(config.without_calls(error))
        except OSError as error:
            # What gin raises in an error's stead has its text but no filename.
            named = _OF_A_FILE.fullmatch(config.without_calls(error))
            if not named:
                raise
            _fail(f"{named['file']}: {named['what']}.")
        except RuntimeError as error:
            if "Required bindings" not in str(error):
                raise
            sentence = config.without_calls(error)
            _fail(f"The configuration lacks something. {sentence}")
        except KeyboardInterrupt:
            _fail("Interrupted; the same command resumes.", status=130)
        except _Terminated:
            _fail("Stopped; the same command resumes.", status=STOPPED)

    app.run(guarded)


def _terminate(number, frame):
    raise _Terminated


def _work_dir_held():
    values = flags.FLAGS.flag_values_dict()
    work_dir = values.get("work_dir")
    # A plan is only printed, and of a cluster's workers only the chief writes.
    if work_dir is None or values.get("dry_run") or not _is_chief():
        return contextlib.nullcontext()
    return files.hold(work_dir)


def _is_chief():
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        task = cluster["task"]
        if "chief" in cluster["cluster"]:
            return task["type"] == "chief"
        return task["type"] == "worker" and int(task["index"]) == 0
    except (ValueError, KeyError, TypeError):
        return True


def _fail(sentence, status=1):
    print(f"\nError: {sentence}", file=sys.stderr)
    sys.exit(status)
