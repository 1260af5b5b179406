"""What the commands share: flags, help, gin, and plain sentences."""

from keras_transfer import environment

# Before all that takes its time: before TensorFlow, Keras and Matplotlib.
_UNUSED = environment.prepare()

import contextlib
import importlib.metadata
import inspect
import json
import os
import re
import signal
import sys
import textwrap

from absl import app, flags, logging

from keras_transfer import __version__
from keras_transfer.errors import UserError

GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "Path of a gin file, or the name of one that is shipped; may be repeated, "
    "later ones win.",
)
GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings",
    [],
    "One gin binding, such as 'train.seed = 1'; may be repeated, wins over "
    "the files.",
)
# The flags that are paths, and those that must be given.
_PATHS, _REQUIRED = ["gin_file"], []
HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
VERSION = {"--version", "-version"}
_WIDTH = 79
# What absl adds to the help of a flag.
_ADDED_HELP = re.compile(r"^<[^>]*>: |;\s+repeat this option .*$")

# The text of an operating system's error about a file, or about two.
_OF_A_FILE = re.compile(r"\[Errno \d+\] (?P<what>.+?): (?P<file>['\"].+['\"])")
# What a shell reports of a process that ends by SIGTERM: 128 + 15.
STOPPED = 143
_MORE_MEMORY = (
    "Make train.batch_size, load.memory_budget or the model smaller, or take a "
    "machine with more."
)


# What stands before a command's name.
_prefix = "bin/"


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
    if required:
        _REQUIRED.append(name)
    return flags.DEFINE_string(name, None, help_text)


def set_prefix(prefix):
    """Sets how commands are called, where one is mentioned.

    Args:
        prefix: str, "bin/" or what else stands before a command's name.
    """
    global _prefix
    _prefix = prefix


def command(name):
    """Returns how to call a command, a str."""
    return f"{_prefix}{name}"


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
            "--gin_file=gin/p_mnist.gin; `keras-transfer init` lists them all."
        )
    config.parse(GIN_FILE.value, GIN_BINDINGS.value)


def run(main, text="", arguments=None):
    """Runs a command; what the user can mend ends in a sentence and status 1.

    No other command works in its --work_dir meanwhile. On SIGTERM it stops
    within seconds, with status 143; on Ctrl-C, with 130. The same command then
    resumes. With --verbosity=0 the traceback behind a sentence shows as well.

    Args:
        main: function called after the flags are parsed, with the values of
            those that its parameters name; if it takes `*names` before them,
            with all that is no flag, and without preparing TensorFlow.
        text: str, what --help says before the flags, with an example first.
        arguments: list of str; None for those of this process.
    """
    sys.stdout = environment.Stream(sys.stdout)
    sys.stderr = environment.Stream(sys.stderr)
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    text = text.strip().replace("bin/", _prefix)
    if HELP.intersection(arguments):
        print_whole(f"{text}\n\n{_flags_text(main)}".strip())
        return
    if VERSION.intersection(arguments):
        print_whole(versions())
        return
    # Names may stand before flags.
    flags.FLAGS.set_gnu_getopt(_takes_names(main))
    example = text.partition("\n\n")[2].partition("\n\n")[0]
    hint = f" For example:\n\n{example}\n\n--help tells more." * bool(example)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            said = str(error).replace(" ?", "?").rstrip(".")
            stop = "" if said.endswith("?") else "."
            _fail(f"{said}{stop} --help lists all flags.")
        values = flags.FLAGS.flag_values_dict()
        missing = [f"--{n}" for n in _REQUIRED if values[n] is None]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            _fail(f"{' and '.join(missing)} {verb} missing.{hint}")
        return rest

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

    app.run(guarded, [sys.argv[0], *arguments], flags_parser=parse)


def print_whole(text, stream=None):
    """Prints a text to somebody who may not read it to its end.

    Args:
        text: str.
        stream: text stream; None for the standard output.
    """
    stream = environment.Stream(stream or sys.stdout)
    print(text, file=stream)
    stream.flush()


def _takes_names(main):
    """Returns whether a command takes names before its flags."""
    parameters = inspect.signature(main).parameters.values()
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _flag_values(main):
    """Returns the values of the flags that a command's parameters name."""
    parameters = inspect.signature(main).parameters.values()
    return {
        p.name: flags.FLAGS[p.name].value
        for p in parameters
        if p.kind is not p.VAR_POSITIONAL
    }


def _flags_text(main):
    """Returns what is known of a command's flags, a few lines; "" of none."""
    # A command of names has no configuration.
    wanted = set(_flag_values(main)) if _takes_names(main) else None
    if wanted == set():
        return ""
    described = {"verbosity": "0: also the traceback behind an error."}
    values = {"verbosity": "0"}
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if not module.startswith("absl."):
            for flag in defined:
                if wanted is None or flag.name in wanted:
                    described[flag.name] = _ADDED_HELP.sub("", flag.help)
                    values[flag.name] = _value_text(flag)
    order = sorted(described, key=lambda n: (n == "verbosity", n not in _PATHS))
    parts = [
        f"  --{name}{values[name] and '='}{values[name]}\n"
        + textwrap.fill(
            described[name],
            _WIDTH,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
        for name in order
    ]
    return "\n".join(["Flags:", *parts])


def _value_text(flag):
    """Returns what may stand behind a flag's equals sign, "" if nothing."""
    if flag.boolean:
        return ""
    if hasattr(flag.parser, "enum_values"):
        return "|".join(flag.parser.enum_values)
    if flag.name in _PATHS:
        return "PATH"
    return str(flag.default or flag.name.rpartition("_")[2].upper())


def versions():
    """Returns which version this is, and of what it stands on."""
    found = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "keras")
    ]
    return f"keras_transfer {__version__} ({', '.join(found)})"


def _run(main, argv):
    if _takes_names(main):
        _expand_paths()
        main(*argv[1:], **_flag_values(main))
        return
    if len(argv) > 1:
        raise UserError(f"Flags begin with --. Received: {' '.join(argv[1:])}")
    for sentence in _UNUSED:
        logging.warning("%s", sentence)
    _expand_paths()
    # Before Keras, which takes seconds to import: who comes second is told so.
    with _work_dir_held():
        environment.check_temporary_files()
        environment.prepare_keras()
        from keras_transfer import memory

        memory.keep_freed()
        main(**_flag_values(main))


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
