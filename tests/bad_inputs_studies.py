"""Studies that cannot be carried out."""

from bad_inputs_case import ROOT, Case

_STUDIES = {
    "title": ("3", "None"),
    "pretrain": (
        "3",
        "''",
        "'nowhere.gin'",
        "'{target}.gin'",
        "'../gin'",
        "'mistakes.gin'",
    ),
    "scratch": (
        "3",
        "'nowhere.gin'",
        "'rit_{nobody}.gin'",
        "'rit_{.gin'",
        "'rit_{}.gin'",
        "'rit_{target.x}.gin'",
        "'rit_{target!z}.gin'",
    ),
    "fine_tune": ("3", "'nowhere.gin'", "'pt_{nobody}.gin'"),
    "targets": (
        "3",
        "{}",
        "[]",
        "['digits']",
        "'digits'",
        "{'nowhere': {}}",
        "{3: {}}",
        "{'': {}}",
        "{'../digits': {}}",
        "{'digits': 3}",
        "{'digits': {'P-T': 3}}",
        "{'digits': {'no.such': 1}}",
        "{'digits': {'load.num_train': 'x'}}",
        "{'digits': {3: 4}}",
        "{'digits': {'load.name = 1': 4}}",
    ),
    "source": ("3", "'x'", "{'no.such': 1}", "[1]"),
    "replications": ("0", "-1", "1.5", "'x'", "None", "[0, 1]"),
    "first_seed": ("-1", "'x'", "1.5", "2**40"),
    "draw": ("3", "'no such'", "'load.no_such'"),
    "threads": ("0", "'x'", "1.5"),
    "block_sizes": ("3", "['x']", "[0]", "[-1]", "[1.5]", "[4, 4]"),
    "num_train": (
        "3",
        "[50]",
        "{0: {}}",
        "{1.5: {}}",
        "{'x': {}}",
        "{50: 3}",
        "{50: {'train.no_such': 1}}",
    ),
    "pretrained_epochs": ("3", "['x']", "[-1]", "[1.5]", "[0, 0]"),
    "analyses": (
        "3",
        "'mistakes.gin'",
        "[3]",
        "['nowhere.gin']",
        "['mistakes']",
        "['']",
        "[@train]",
        "['pt_digits.gin']",
        "['mistakes.gin', 'mistakes.gin']",
    ),
    "bindings": (
        "3",
        "[]",
        "{3: 4}",
        "{'': 1}",
        "{'train.no_such': 1}",
        "{'train.epochs': 'x'}",
        "{'train.model': 'x'}",
        "{'train.epochs = 1\\ntrain.seed': 1}",
    ),
    "analyses_of_one": ("3", "['nowhere.gin']", "['mistakes.gin']"),
    "analyses_of_three": ("3", "['nowhere.gin']", "['mistakes.gin']"),
    "analysis_bindings": ("3", "{'basin.num_samples': 'x'}"),
    "no_such": ("3",),
}


def study_cases():
    """Yields studies that cannot be carried out, and say so at once."""
    for attribute, values in _STUDIES.items():
        for value in values:
            binding = f"Study.{attribute} = {value}"
            yield _study_case(binding, binding)
    for value in ("3", "{'': 3}", "{'': ('a', 'b')}", "{'digits': [1]}"):
        binding = f"Study.num_images = {value}"
        yield _study_case(binding, binding, ("--dry_run",))
    yield _study_case("of a run", "", config="pt_digits.gin", says="Study")
    yield _study_case(
        "below a file", "", ("--work_dir={directory}/stdout/output",)
    )


def _study_case(
    name, binding, flags=(), ends="sentence", config="study_digits.gin", says=""
):
    def make(directory):
        return "reproduce", [
            f"--gin_file={ROOT / 'gin' / config}",
            *([f"--gin_bindings={binding}"] if binding else []),
            f"--work_dir={directory / 'output'}",
            *(flag.format(directory=directory) for flag in flags),
        ]

    return Case("study", name, make, ends, says)
