"""Gin files and bindings that cannot be used."""

import numpy as np
from bad_inputs_case import Case, train

_WRONG_VALUES = {
    "train.epochs": (
        "9" * 30,
        "'x'",
        "0",
        "-1",
        "1.5",
        "None",
        "[1]",
        "True",
        "@SGD",
    ),
    "train.batch_size": ("'x'", "0", "-1", "1.5", "None", "10**9", "[4]"),
    "train.seed": ("'x'", "1.5", "None", "-1"),
    "train.mixup_alpha": ("'x'", "-1.0", "None", "[1.0]", "1e999"),
    "train.eval_batch_size": ("'x'", "1.5", "None", "0", "-1"),
    "train.keep_epochs": ("3", "'some'", "None", "{1: 2}", "['x']"),
    "train.dtype_policy": ("'float99'", "3", "None"),
    "train.schedule": ("'cosine'", "3", "None", "@load", "@cosine()"),
    "train.model": ("'resnet'", "3", "None", "@SGD", "@fixup_resnet()"),
    "train.dataset": ("'digits'", "3", "None", "@strategy", "@SGD"),
    "train.optimizer": ("'SGD'", "3", "None", "@load", "@fixup_resnet"),
    "train.strategy": ("'mirrored'", "3", "None", "@load", "@strategy()"),
    "train.augmentation": (
        "3",
        "'flip'",
        "[1]",
        "[@random_crop]",
        "@random_crop()",
        "[@load()]",
    ),
    "train.pretrained": ("3", "'nowhere'", "''", "['a']"),
    "train.pretrained_epoch": ("1.5", "None", "[1]"),
    "train.jit_compile": ("'x'", "3"),
    "train.trained_modules": ("'fc'", "3", "[]", "['head']", "[1]"),
    "train.layer_decay": ("'x'", "-1.0", "2.0", "[0.5]"),
    "train.label_smoothing": ("'x'", "-0.1", "1.5", "None"),
    "train.class_weights": ("'x'", "3", "{'cat': 1.0}", "{'3': -1}", "{3: 1}"),
    "train.patience": ("'x'", "0", "1.5", "3"),
    "strategy.name": ("'none'", "3", "['tpu']", "'tpu'"),
    "strategy.devices": ("3", "'CPU:0'", "['CPU:99']", "[0]", "[]"),
    "load.name": ("3", "'no_such_data'", "None", "''"),
    "load.image_size": ("'x'", "0", "-1", "8.5", "[8]", "(8, 0)", "1000000"),
    "load.channels": ("'x'", "0", "2", "4", "[1]"),
    "load.resize": ("'x'", "-1", "2", "8.5"),
    "load.num_train": ("'x'", "0", "-1", "1.5", "1000000"),
    "load.seed": ("'x'", "-1", "1.5", "None"),
    "load.mean": ("'x'", "[0.1, 0.2]", "{}"),
    "load.std": ("'x'", "0", "-1.0", "[]"),
    "load.shuffle": ("'x'", "3", "'blocks'"),
    "load.block_size": ("'x'", "3", "0"),
    "load.shuffle_seed": ("'x'", "-1", "None"),
    "load.memory_budget": ("'x'", "None", "-1.0"),
    "load.cache_dir": ("3", "['a']"),
    "load.keep": ("3", "'all'"),
    "load.on_damaged": ("3", "'ignore'"),
    "load.data_dir": ("3", "['a']"),
    "load.train_split": ("3", "'nowhere'"),
    "load.test_split": ("3", "'nowhere'"),
    "load.validation_split": ("'x'", "0.0", "1", "-0.5", "1e-9", "[0.1]"),
    "load.split_size": ("'x'", "0", "-1"),
    "load.split_seed": ("'x'", "-1"),
    "fixup_resnet.widths": ("3", "'x'", "()", "(0,)", "(-2,)", "('a',)"),
    "fixup_resnet.blocks_per_stage": ("'x'", "0", "-1", "1.5"),
    "cosine.base_rate": ("'x'", "-1.0", "None", "1e999"),
    "cosine.warmup_epochs": ("'x'", "-1.0", "None", "1e999"),
    "SGD.momentum": ("'x'", "None", "-1.0"),
    "SGD.weight_decay": ("'x'", "-1.0"),
    "SGD.global_clipnorm": ("'x'", "-1.0", "0.0"),
    "SGD.scalar_multiplier": ("'x'", "-1.0"),
    "SGD.use_ema": ("'x'", "3", "None"),
    "SGD.ema_momentum": ("'x'", "2.0", "-1.0"),
    "SGD.gradient_accumulation_steps": ("'x'", "1", "1.5", "-1"),
    "AdamW.clipnorm": ("'x'", "[1.0]"),
    "AdamW.no_such": ("1",),
    "random_crop.padding": ("'x'", "-1", "1.5"),
}
# What stands for a number that has been worked out.
_COMPUTED = {"10**9": "1000000000"}


def value_cases():
    """Yields bindings of the wrong type or size."""
    for parameter, values in _WRONG_VALUES.items():
        for value in values:
            binding = f"{parameter} = {_COMPUTED.get(value, value)}"
            says = parameter.split(".")[1]

            def make(directory, binding=binding):
                small = "load.num_train = 8"
                return train(directory, small, binding, config="rit_digits.gin")

            yield Case("binding", binding, make, "either", says)


_CONFIGS = {
    "empty": ("", "configuration"),
    "unknown configurable": ("no_such.parameter = 1", "no_such"),
    "unknown parameter": ("train.no_such = 1", "no_such"),
    "unknown reference": ("train.model = @no_such", "no_such"),
    "unknown macro": ("train.epochs = %no_such", "no_such"),
    "missing include": ("include 'nowhere.gin'", "nowhere.gin"),
    "includes itself": ("include 'config.gin'", "config.gin"),
    "includes a directory": ("include '.'", ""),
    "missing import": ("import no_such_module", "no_such_module"),
    "no value": ("train.epochs =", "config.gin"),
    "no equals sign": ("train.epochs 3", "config.gin"),
    "open bracket": ("train.augmentation = [", "config.gin"),
    "open quote": ("load.name = 'digits", "config.gin"),
    "an expression": ("train.epochs = 1 + 1", "config.gin"),
    "a call": ("train.epochs = int('3')", "config.gin"),
    "Python": ("def train():\n    pass\n", "config.gin"),
    "JSON": ('{"train.epochs": 3}', "config.gin"),
    "YAML": ("train:\n  epochs: 3\n", "config.gin"),
    "an odd character": ("train.epochs = 3 \N{PILE OF POO}", "config.gin"),
    "indented": ("  train.epochs = 3", ""),
    "macro of itself": ("a = %a\ntrain.epochs = %a", "%a = %a"),
    "macro of itself, unused": ("a = %a", "%a = %a"),
    "macros in a ring": ("a = [%b]\nb = {'x': %a}", "%a = %b"),
    "macro without a value": ("train.epochs = %a/b", "a/b"),
    "macro of another type": ("a = 'x'\ntrain.epochs = %a", "train.epochs"),
    "reference to itself": (
        "random_crop.padding = @random_crop()",
        "@random_crop()",
    ),
    "call without an argument": (
        "train.augmentation = [@random_crop()]",
        "random_crop.padding",
    ),
    "reference without an argument": ("train.dataset = @load", "load.name"),
    "configurable of Python": ("train.model = @print", "print"),
    "import of a secret": ("import os\nos.system = 'true'", "os"),
    "bound twice": ("train.epochs = 1\ntrain.epochs = 'x'", "train.epochs"),
    "deep brackets": ("train.keep_epochs = " + "[" * 3000, "config.gin"),
    "zero bytes": ("train.epochs = 3\0", ""),
}


def config_cases():
    """Yields gin files that cannot be used."""
    for name, (text, says) in _CONFIGS.items():
        yield config_case(name, text.encode(), says)
    yield config_case("binary", np.random.RandomState(0).bytes(3000), "")
    yield config_case("Latin-1", b"load.name = 'Fr\xe4ulein'", "config.gin")
    yield config_case("UTF-16", "train.epochs = 3".encode("utf-16"), "")
    yield config_case("absent", None, "config.gin")
    yield Case("configuration", "directory", _directory_as_config)
    yield Case("configuration", "loop of two", _loop_of_two, says="a.gin")


def config_case(name, content, says):
    """Returns a case of one gin file."""

    def make(directory):
        path = directory / "config.gin"
        if content is not None:
            path.write_bytes(content)
        return "train", [
            f"--gin_file={path}",
            f"--work_dir={directory / 'output'}",
        ]

    return Case("configuration", name, make, says=says)


def _directory_as_config(directory):
    return "train", [
        f"--gin_file={directory}",
        f"--work_dir={directory / 'output'}",
    ]


def _loop_of_two(directory):
    (directory / "a.gin").write_text("include 'b.gin'\n")
    (directory / "b.gin").write_text("include 'a.gin'\n")
    return "train", [
        f"--gin_file={directory / 'a.gin'}",
        f"--work_dir={directory / 'output'}",
    ]
