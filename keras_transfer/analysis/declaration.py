"""What an analysis is: a question asked of models, declared in one file.

    @declare_analysis(
        figures=[Figure("sparsity", draw, "How many weights are near zero")],
        statistics=[Statistic("X1", "P-Ts are sparser.", ...)],
        cost=lambda options, models: 0,
    )
    def sparsity(models, threshold: float = 1e-3):
        return pandas.DataFrame(...)

The function takes `Models` and returns a `DataFrame`, or a `Table` where there
are several. What is declared beside it is all that `analyze`, a study, its
claims, its report and `keras_transfer.figures` need to know: nothing else lists
the analyses.
"""

import dataclasses
import functools
import inspect
import typing

import gin
import pandas

from keras_transfer.config import schema
from keras_transfer.errors import UserError


class Table(pandas.DataFrame):
    """The table that an analysis returns, with further ones beside it.

    What is selected or computed from it is a plain `pandas.DataFrame`.

    Args:
        data: as `pandas.DataFrame` takes it.
        **further: `pandas.DataFrame`s by name.

    Attributes:
        further: {name: `pandas.DataFrame`}.
    """

    _metadata = ["further"]

    def __init__(self, data, **further):
        super().__init__(data)
        self.further = further


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of an analysis.

    Attributes:
        name: str, of its file; "{kind}" in it stands for each value of the
            table's column kind, and there is a figure of each.
        draw: function of the tables, in their order, that returns a
            `matplotlib.figure.Figure`, or None if there is nothing to draw.
        title: str, what it shows, for a report.
        text: str, a sentence on how to read it.
        tables: names of the tables it is drawn from; () for the analysis' own.
    """

    name: str
    draw: typing.Callable
    title: str = ""
    text: str = ""
    tables: tuple = ()

    def __call__(self, *tables):
        """Draws it; see `drawn`."""
        import matplotlib

        # Not what a user's matplotlibrc asks for: LaTeX may not be there.
        with matplotlib.rc_context({"text.usetex": False}):
            return self.draw(*map(_without_formulae, tables))

    def drawn(self, tables):
        """Yields (name, `matplotlib.figure.Figure`).

        Args:
            tables: {name: `pandas.DataFrame`}, of which it takes its own.
        """
        own = [tables[name] for name in self.tables]
        if any(not len(table) for table in own[:1]):
            return
        if "{kind}" not in self.name:
            kinds = [(self.name, own)]
        else:
            kinds = [
                (
                    self.name.replace("{kind}", kind),
                    [t[t.kind == kind] for t in own],
                )
                for kind in dict.fromkeys(own[0].kind)
            ]
        for name, chosen in kinds:
            figure = self(*chosen)
            if figure is not None:
                yield name, figure


class Value(typing.NamedTuple):
    """What a statistic is in one replication, with a remark on it.

    Attributes:
        value: float.
        note: str, a sentence that must be read with it, "" for none.
    """

    value: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One number that a claim stands or falls with, in each replication.

    Attributes:
        claim: str, such as "C1".
        statement: str, what is claimed.
        name: str, what is measured, in words.
        direction: ">" or "<": on which side of the threshold it speaks for the
            claim.
        threshold: float.
        compute: function from the tables of one replication to a float or a
            `Value`; raises a `Refuted` if what is claimed was not to be found
            at all, and a `UserError` if it cannot be computed.
        tables: names of the tables it is computed from; () for the analysis'
            own.
        figure: str, name of the figure that shows it; "" for the first.
        decides: bool, whether the claim depends on it; otherwise it is shown
            beside those that decide.
        calibrate: function from the tables of all other replications, a list of
            tuples, to what `compute` takes after its own tables; None where
            each replication is judged by itself.
        unit: str, of the number: "nats", "times" or another word; "points" and
            "%" are of shares, which are shown a hundredfold; "" for none.
    """

    claim: str
    statement: str
    name: str
    direction: str
    threshold: float
    compute: typing.Callable
    tables: tuple = ()
    figure: str = ""
    decides: bool = True
    calibrate: typing.Callable | None = None
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a report tells of a claim before it tells what was found.

    Attributes:
        question: str, what is asked, a question.
        why: str, why it matters to somebody who fine-tunes a model.
        measure: str, how the answer is measured.
    """

    question: str
    why: str
    measure: str


class Refuted(Exception):
    """There is no number, because what is claimed was not to be found."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What is declared of an analysis.

    Attributes:
        name: str, the function's.
        function: of `Models` and options; returns a `pandas.DataFrame`.
        figures: tuple of `Figure`.
        statistics: tuple of `Statistic`.
        cost: function of ({option: value}, number of models) that returns how
            often the whole network is run on every image of a split.
        by_module: bool, whether each such run is of every module, from that
            module on: half of the network for each of them.
        in_memory: names of further tables that figures are drawn from but that
            are not written, such as images.
    """

    name: str
    function: typing.Callable
    figures: tuple
    statistics: tuple
    cost: typing.Callable
    by_module: bool
    in_memory: tuple

    def options(self):
        """Returns what its options are bound to in gin, defaults included."""
        parameters = inspect.signature(self.function).parameters.values()
        bound = gin.get_bindings(self.name)
        return {
            p.name: bound.get(p.name, p.default)
            for p in parameters
            if p.default is not p.empty or p.name in bound
        }

    def figure(self, name):
        """Returns the `Figure` of that name, the first for ""."""
        found = [f for f in self.figures if name in ("", f.name)]
        return found[0] if found else None


_DECLARED = {}
_CLAIMS = {}


def describe_claim(name, claim):
    """Has reports tell more of a claim than its statistics do.

    Args:
        name: str, such as "C1".
        claim: `Claim`.
    """
    _CLAIMS[name] = claim


def described_claim(name):
    """Returns the `Claim` of that name, None if nobody has described it."""
    return _CLAIMS.get(name)


def declare_analysis(
    figures=(),
    statistics=(),
    cost=lambda options, models: models,
    by_module=False,
    in_memory=(),
):
    """Declares a function of models as an analysis, and registers it in gin.

    Args:
        figures: `Figure`s, in the order they are shown in.
        statistics: `Statistic`s.
        cost: see `Analysis`; by default, once for each model.
        by_module: see `Analysis`.
        in_memory: see `Analysis`.

    Returns:
        A decorator. What it returns is called as before, checks that its first
        argument is a `Models` and the others what they are declared to take,
        and names the policy for batch normalization in the last column of every
        table.

    Raises:
        UserError: if another function of that name is an analysis already.
    """

    def declare(function):
        name = function.__name__
        known = _DECLARED.get(name)
        if known and known.function.__module__ != function.__module__:
            raise UserError(
                f"There is an analysis {name} in {known.function.__module__} "
                f"already. Received: another in {function.__module__}; give it "
                "another name."
            )

        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(models, *arguments, **options):
            # Not imported above, for models know nothing of analyses.
            from keras_transfer.analysis.models import Models

            if not isinstance(models, Models):
                raise UserError(
                    f"{name} takes Models: {name}(Models({{'P-T': [...]}}, "
                    f"data=Examples(...))). Received: {type(models).__name__}"
                )
            given = signature.bind(models, *arguments, **options).arguments
            schema.check_arguments(function, given)
            table = function(models, *arguments, **options)
            for each in tables_of(name, table).values():
                if "batch_norm" not in each:
                    each["batch_norm"] = models.batch_norm_used
            return table

        # Gin reads the defaults from it, for the operative configuration.
        checked.__signature__ = signature
        own = (name,)
        _DECLARED[name] = Analysis(
            name,
            function,
            tuple(
                dataclasses.replace(f, tables=f.tables or own) for f in figures
            ),
            tuple(
                dataclasses.replace(s, tables=s.tables or own)
                for s in statistics
            ),
            cost,
            by_module,
            tuple(in_memory),
        )
        return gin.configurable(name, module=function.__module__)(checked)

    return declare


def all_analyses():
    """Returns every `Analysis` that is declared, as a list."""
    return list(_DECLARED.values())


def find_analysis(name):
    """Returns the `Analysis` of that name, the function's.

    Raises:
        UserError: if there is none.
    """
    if name not in _DECLARED:
        raise UserError(
            f"There is no analysis {name!r}; declare the function with "
            "@declare_analysis(...). There are: "
            f"{', '.join(sorted(_DECLARED))}."
        )
    return _DECLARED[name]


def tables_of(name, table):
    """Returns {name: table} of what an analysis returned."""
    return {name: table} | getattr(table, "further", {})


def _without_formulae(table):
    """Returns a table whose texts Matplotlib does not take for formulae."""
    texts = table.select_dtypes(exclude=["number", "bool"])
    changed = {
        column: texts[column].map(
            lambda cell: (
                cell.replace("$", r"\$") if isinstance(cell, str) else cell
            )
        )
        for column in texts
        if texts[column].astype(str).str.contains("$", regex=False).any()
    }
    return table.assign(**changed) if changed else table
