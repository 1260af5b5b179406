"""What to analyze, and how, in bindings that make no sense."""

from bad_inputs_case import ROOT, Case
from bad_inputs_runs import analysis


def models_cases():
    """Yields bindings of what to analyze that name nothing."""
    for binding in (
        "Models.models = 3",
        "Models.models = {}",
        "Models.models = {'P-T': []}",
        "Models.models = {'P-T': 3}",
        "Models.models = {'P-T': [3]}",
        "Models.models = {3: ['nowhere']}",
        "Models.models = {'P-T': ['nowhere']}",
        "Models.models = 'nowhere'",
        "Models.models = {'P-T': ['../trained', '../trained']}",
        "Models.models = {'P-T': ['../trained'], 'P': '../other/../trained'}",
        "Models.epoch = 99",
        "Models.epoch = 'first'",
        "Models.epoch = 1.5",
        "Models.epoch = -1",
        "Models.data = 3",
        "Models.data = 'nowhere'",
        "analyze.analyses = []",
        "analyze.analyses = 3",
        "analyze.analyses = ['mistakes']",
        "analyze.analyses = @mistakes",
        "analyze.analyses = [@mistakes()]",
        "analyze.analyses = [@load]",
        "analyze.analyses = [@SGD]",
        "analyze.analyses = [@mistakes, None]",
    ):

        def make(directory, binding=binding):
            run = directory.parent / "trained"
            return analysis("mistakes", binding)(directory, run)

        yield Case("binding of an analysis", binding, make)
    for parameter, values in _WRONG_OF_ANALYSES.items():
        for value in values:
            yield _analysis_case(parameter, value)


_WRONG_OF_ANALYSES = {
    "mistakes.split": ("'valid'", "3", "None"),
    "mistakes.num_bins": ("'x'", "0", "-1", "1.5"),
    "mistakes.images_shown": ("'x'", "0", "-1"),
    "basin.split": ("'valid'", "3"),
    "basin.tolerance": ("'x'", "0.0", "-1.0"),
    "basin.deltas": ("3", "[]", "['x']", "[0.0]", "[-1.0]"),
    "basin.num_samples": ("'x'", "0", "-1", "1"),
    "basin.seed": ("'x'", "-1", "1.5"),
    "basin.reference": ("3", "None"),
    "basin.sensitivity": ("'x'",),
    "criticality.positions": ("3", "[]", "['x']", "[-1.0]", "[2.0]"),
    "criticality.sigmas": ("3", "[]", "['x']", "[-1.0]", "[0.0]"),
    "criticality.num_draws": ("'x'", "0", "-1"),
    "criticality.refinements": ("'x'", "-1"),
    "criticality.margin": ("'x'", "-1.0"),
    "criticality.levels": ("3", "'block'", "['x']", "[]"),
    "criticality.seed": ("'x'", "-1"),
    "interpolation.num_points": ("'x'", "0", "1", "-1"),
    "interpolation.extent": ("3", "[0.0]", "[1.0, 0.0]", "['a', 'b']"),
    "interpolation.splits": ("3", "'test'", "['valid']", "[]"),
    "interpolation.epochs": ("3", "'last'", "[1.5]", "[99]", "[]"),
    "plane.num_points": ("'x'", "0", "1", "-1"),
    "plane.margin": ("'x'", "-1.0"),
    "plane.split": ("'valid'",),
    "rewinding.epochs": ("3", "['x']", "[99]", "[-1]", "[]"),
    "rewinding.splits": ("'test'", "['valid']", "[]"),
    "rewinding.levels": ("'block'", "['x']", "[]"),
    "similarity.split": ("'valid'", "3"),
    "similarity.num_examples": ("'x'", "0", "-1", "1"),
    "similarity.seed": ("'x'", "-1"),
    "similarity.batch_size": ("'x'", "0", "-1", "1"),
    "similarity.kernel": ("'x'", "3"),
    "similarity.bandwidth": ("'x'", "0.0", "-1.0"),
    "similarity.memory_budget": ("'x'", "-1.0", "0.0"),
    "spectrum.num_values": ("'x'", "0", "-1", "1"),
    "pretraining.pretrained": ("3", "'nowhere'"),
    "pretraining.num_points": ("'x'", "0", "-1"),
    "pretraining.tolerance": ("'x'", "-1.0"),
    "examples_surface.batch_size": ("'x'", "0", "-1"),
    "examples_surface.memory_budget": ("'x'", "-1.0"),
    "examples_surface.modules": ("3", "['x']", "[]"),
    "examples_modules.batch_size": ("'x'", "0", "-1"),
    "examples_modules.num_examples": ("'x'", "0", "-1"),
    "examples_modules.memory_budget": ("'x'", "-1.0"),
}
# What reads a parameter that is not an analysis' own.
_READS = {
    "examples_surface": "interpolation",
    "examples_modules": "criticality",
}
_QUICK = [
    "basin.num_samples = 2",
    "basin.sensitivity = False",
    "criticality.positions = (0.0, 1.0)",
    "criticality.sigmas = (0.1, 1.0)",
    "criticality.num_draws = 2",
    "interpolation.num_points = 3",
    "plane.num_points = 3",
    "similarity.num_examples = 8",
    "similarity.batch_size = 4",
    "spectrum.num_values = 3",
]


def _analysis_case(parameter, value):
    binding = f"{parameter} = {value}"
    function, name = parameter.split(".")
    analysis = _READS.get(function, function)
    says = "checkpoint of epoch 99" if value == "[99]" else name
    says = value.strip("'") if value == "'nowhere'" else says

    def make(directory):
        names = ("trained", "other", "third")
        models = {"P-T": [str(directory.parent / n) for n in names]}
        quick = [b for b in _QUICK if not b.startswith(parameter)]
        return "analyze", [
            f"--gin_file={ROOT}/gin/{analysis}.gin",
            f"--gin_bindings=Models.models = {models}",
            *(f"--gin_bindings={b}" for b in (*quick, binding)),
            f"--work_dir={directory / 'output'}",
        ]

    return Case("binding of an analysis", binding, make, "either", says)
