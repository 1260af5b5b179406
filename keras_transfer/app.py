"""What the commands under `bin/` share: flags, gin, and plain sentences."""

from keras_transfer import environment

# Before all that takes its time: before TensorFlow, Keras and Matplotlib.
_UNUSED = environment.prepare()

import contextlib
import json
import os
import re
import signal
import sys

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
# The flags that are paths.
_PATHS = ["gin_file"]

# The text of an operating system's error about a file, or about two.
_OF_A_FILE = re.compile(r"\[Errno \d+\] (?P<what>.+?): (?P<file>['\"].+['\"])")
# What a shell reports of a process that ends by SIGTERM: 128 + 15.
STOPPED = 143
_MORE_MEMORY = (
    "Make train.batch_size, load.memory_budget or the model smaller, or take a "
    "machine with more."
)


class _Terminated(BaseException):
    """SIGTERM has come: the machine is wanted back."""


def define_path(name, help_text, required=True):
    """Defines a flag that is a path, in which `~` is the home directory.

    Args:
        name: str, without dashes.
        help_text: str.
        required: bool.

    Returns:
        absl's holder of the flag; its `value` is a str.
    """
    _PATHS.append(name)
    return flags.DEFINE_string(name, None, help_text, required=required)


def parse_gin():
    """Reads the configuration named by --gin_file and --gin_bindings.

    Raises:
        UserError: if a file is missing, or a line cannot be parsed or names
            something that does not exist.
    """
    from keras_transfer import config

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
    resumes. With --verbosity=0 the traceback behind a sentence shows as well.

    Args:
        main: function of no arguments, called after the flags are parsed.
    """
    sys.stdout = environment.Stream(sys.stdout)
    sys.stderr = environment.Stream(sys.stderr)
    logging.get_absl_handler().python_handler.setStream(sys.stderr)

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        signal.signal(signal.SIGTERM, _terminate)
        try:
            _run(main, argv)
        except KeyboardInterrupt:
            _fail("Interrupted; the same command resumes.", status=130)
        except _Terminated:
            _fail("Stopped; the same command resumes.", status=STOPPED)
        except Exception as error:
            sentence = _sentence(error)
            if not sentence:
                raise
            logging.info("This led to the sentence below.", exc_info=True)
            _fail(sentence)
        sys.stdout.flush()
        if sys.stdout.is_lost:
            _fail(
                "Standard output cannot be written: "
                f"{sys.stdout.error.strerror}. All else is done."
            )

    app.run(guarded)


def _run(main, argv):
    if len(argv) > 1:
        raise UserError(f"Flags begin with --. Received: {' '.join(argv[1:])}")
    for sentence in _UNUSED:
        logging.warning("%s", sentence)
    _expand_paths()
    environment.prepare_keras()
    from keras_transfer import memory

    memory.keep_freed()
    with _work_dir_held():
        main()


def _expand_paths():
    from keras_transfer import files

    for name in _PATHS:
        flag = flags.FLAGS[name]
        if isinstance(flag.value, list):
            flag.value = [
                str(files.user_path(path, f"--{name}")) for path in flag.value
            ]
        elif flag.value is not None:
            flag.value = str(files.user_path(flag.value, f"--{name}"))


def _sentence(error):
    """Returns what to tell of an error; "" if it is a fault of the program."""
    from keras_transfer import config

    said = config.without_calls(error)
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(error, UserError):
        return said
    if isinstance(error, OSError):
        return _of_the_system(said)
    if isinstance(error, MemoryError):
        return f"There is not enough memory: {said or 'none'}. {_MORE_MEMORY}"
    if isinstance(error, RecursionError):
        return f"Something is nested too deeply to be read: {said}."
    if isinstance(error, RuntimeError) and "Required bindings" in said:
        return f"The configuration lacks something. {said}"
    if tensorflow and isinstance(error, tensorflow.errors.OpError):
        return _of_tensorflow(error, tensorflow)
    return ""


def _of_the_system(said):
    # What gin raises in an error's stead has its text but no filename.
    named = _OF_A_FILE.fullmatch(said)
    what = f"{named['file']}: {named['what']}" if named else said
    return f"{what}. What was written before is kept."


def _of_tensorflow(error, tensorflow):
    said = (error.message or str(error)).strip().splitlines()[0]
    if isinstance(error, tensorflow.errors.ResourceExhaustedError):
        return f"There is not enough memory or disk: {said} {_MORE_MEMORY}"
    return f"TensorFlow could not go on: {said}"


def _terminate(number, frame):
    raise _Terminated


def _work_dir_held():
    from keras_transfer import files

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
