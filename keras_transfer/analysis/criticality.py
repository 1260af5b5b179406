"""Module criticality (paper section 3.4).

How far along the way from its initial to its final value must a module be, and
how much noise does it then bear, before the network's error on the training
images rises above epsilon (Chatterji, Neyshabur and Sedghi 2020)?
"""

import itertools
import math

import numpy as np
import pandas
from tqdm import tqdm

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.analysis.rewinding import END_POINTS
from keras_transfer.analysis.statistics import (
    SIGNIFICANCE,
    rank_correlation,
    trend_p_value,
)
from keras_transfer.config import schema
from keras_transfer.errors import UserError
from keras_transfer.landscape.module_loss import (
    LEVELS,
    Levels,
    Perturbations,
    parts,
)
from keras_transfer.landscape.weight_space import noise_seeds

PATHS = ("direct", "optimization")
TOTAL = "total"
# What tells one model and way of perturbing it from another.
_CASE = ["kind", "name", "path", "end_point"]
_GRID_COLUMNS = ("a", "sigma", "distance", "error", "standard_error", "draws")
_FRESH_COLUMNS = ("fresh_error", "fresh_standard_error")
# So many draws show at most points that there need not be more.
_FIRST_DRAWS = 2
# Means of float32 numbers that should be equal differ by less.
_ROUNDING = 1e-7


def _heat_maps(path, end_point):
    """Returns the figure of one path, a heat map for each module."""
    return Figure(
        f"criticality_{path}_{end_point}",
        lambda grid: _module_figure(grid, path, end_point),
        f"Criticality, {path} path, {end_point} weights",
        "Mean error over the models of a kind where one module lies at "
        "position a of its path and bears noise sigma, a heat map for each "
        "module: the larger the dark area, the less critical the module.",
        tables=("criticality_grid",),
    )


def _of_depth(kind):
    """Returns the statistics of claim C8 for one kind of model."""
    claim = "C8", "Higher modules are more sensitive than lower ones."
    where = f"depth of modules, {kind}, direct path to the final weights"
    return [
        Statistic(
            *claim,
            f"permutation p of the rank correlation of criticality and {where}",
            "<",
            SIGNIFICANCE,
            lambda table: _by_depth(table, kind, trend_p_value, 1.0),
        ),
        Statistic(
            *claim,
            f"rank correlation of criticality and {where}",
            ">",
            0.0,
            lambda table: _by_depth(table, kind, rank_correlation, 0.0),
            decides=False,
        ),
        Statistic(
            *claim,
            f"rank correlation of criticality per parameter and {where}",
            ">",
            0.0,
            lambda table: _by_depth(
                table.assign(at_most=table.at_most / table.parameters),
                kind,
                rank_correlation,
                0.0,
            ),
            decides=False,
        ),
    ]


def _of_paths(kind):
    """Returns the statistic of claim C9 for one kind of model."""
    return Statistic(
        "C9",
        "The same pattern on direct and optimization paths, from final and "
        "optimal weights.",
        f"rank correlation of module criticality, {kind}, the least of the "
        "pairs of the four paths",
        ">",
        0.0,
        lambda table: _least_agreement(table, kind),
    )


_OF_HEAD = ("C10", "fc is critical for P-T.")


@declare_analysis(
    figures=[
        Figure(
            "criticality",
            lambda table: _bar_figure(table),
            "Criticality of each module",
            "How critical each module is, from the first to the last, on four "
            "paths: bars are medians over the models of a kind, dots the "
            "models, hollow where the grid only gives an upper bound.",
        ),
        Figure(
            "criticality_first_module",
            lambda grid: _first_module_figure(grid),
            "Criticality of the first module",
            "The heat maps of the first module on all four paths.",
            tables=("criticality_grid",),
        ),
        *itertools.starmap(_heat_maps, itertools.product(PATHS, END_POINTS)),
    ],
    statistics=[
        *_of_depth("P-T"),
        *_of_depth("RI-T"),
        _of_paths("P-T"),
        _of_paths("RI-T"),
        Statistic(
            *_OF_HEAD,
            "criticality of the head over the median of the other modules, "
            "P-T, direct path to the final weights",
            ">",
            1.0,
            lambda table: _head_over_median(table),
            unit="times",
        ),
        Statistic(
            *_OF_HEAD,
            "rank of the head by criticality, P-T (1: the most critical)",
            "<",
            2.0,
            lambda table: float(_heads(table)["rank"].mean()),
            decides=False,
        ),
    ],
    cost=lambda options, models: models * _grid_points(options),
    by_module=True,
)
def criticality(
    models,
    positions: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    sigmas: tuple[float, ...] = (0.016, 0.031, 0.063, 0.125, 0.25, 0.5, 1.0),
    num_draws: schema.Several = 8,
    refinements: schema.Natural = 1,
    margin: schema.NotNegative = 0.01,
    levels: Levels = LEVELS,
    seed: schema.Seed = 0,
):
    """Measures the criticality of every module (paper section 3.4).

    On four paths: the direct line from the initialization and the optimization
    path through the stored checkpoints, to the last epoch ("final") and to the
    best one ("optimal"). `module_criticality` tells what is measured on each;
    the loss is the 0-1 error on the training images, without augmentation (for
    multi-label data the mean binary error). Where the best epoch is the last,
    nothing is evaluated twice.

    Args:
        models: `Models`; those trained on the target are looked at, each a run
            or a `Trajectory` with its epoch 0.
        positions: floats in [0, 1], ascending from 0 to 1.
        sigmas: floats in (0, 1], ascending.
        num_draws: int, draws of noise, and fresh ones for the minimum, at
            least 2 each.
        refinements: int, see `module_criticality`.
        margin: float, the share of training images by which epsilon lies above
            the end point's own error.
        levels: of "block" (modules) and "group" (conv1, layer1, ..., fc).
        seed: int, of the noise.

    Returns:
        `Table`, one row per model, path, end point, level and module, in order
        of depth, and a last one of module "total", the sum over modules (and
        depth NaN): kind, name, path, end_point, epoch (of the end point),
        level, module, depth, and the columns of `module_criticality`. Beside it
        criticality_grid, one row per model, path, end point, level, module and
        grid point.

    Raises:
        UserError: if a model has no epochs or is all frozen, a checkpoint is
            missing, or an argument cannot be used.
    """
    _check_grid(positions, sigmas)
    models.check_trainable("Criticality")
    module_loss = models.module_loss("train", with_auc=False)
    cases = list(itertools.product(models.trained(), END_POINTS))
    tables, grids = [], []
    for member, end_point in tqdm(
        cases, "criticality", unit="end point", disable=None
    ):
        paths = _paths(models, member, end_point)
        found, grid = module_criticality(
            module_loss,
            paths,
            levels,
            positions,
            sigmas,
            num_draws,
            refinements,
            margin,
            seed=seed,
            evaluations=models.evaluations,
            description=f"{member.name}, {end_point}",
        )
        labels = {"kind": member.kind, "name": member.name}
        labels |= {"end_point": end_point}
        labels |= {"epoch": paths["optimization"].epochs[-1]}
        tables.append(found.assign(**labels))
        grids.append(grid.assign(**labels))
    first = [*_CASE, "epoch"]
    table, grid = (
        pandas.concat(t, ignore_index=True).set_index(first).reset_index()
        for t in (tables, grids)
    )
    return Table(table, criticality_grid=grid)


def _grid_points(options):
    """Returns how many points are evaluated of each module of a model."""
    draws = options["num_draws"]
    noisy = draws * len(options["sigmas"])
    grid = len(options["positions"]) * (1 + noisy)
    # A refinement looks at the eight points around the minimum; of two points,
    # as a rule, one is confirmed on fresh draws.
    refined = (8 * options["refinements"] + 2) * draws
    return len(PATHS) * len(END_POINTS) * (grid + refined)


def _paths(models, member, end_point):
    """Returns the two paths of a member that lead to one end point.

    Args:
        models: `Models`.
        member: one of them.
        end_point: "final", the last epoch, or "optimal", the best one.

    Returns:
        {"direct": `Checkpoints` of epoch 0 and of the end point,
        "optimization": of every stored epoch from 0 to the end point's}.

    Raises:
        UserError: if a checkpoint is missing.
    """
    first = member.source.resolve_epoch(0)
    last = member.source.resolve_epoch(END_POINTS[end_point])
    epochs = [epoch for epoch in member.source.epochs() if epoch <= last]
    return {
        "direct": models.checkpoints(member, [first, last]),
        "optimization": models.checkpoints(member, epochs),
    }


def module_criticality(
    module_loss,
    paths,
    levels,
    positions,
    sigmas,
    num_draws,
    refinements,
    margin,
    seed=0,
    evaluations=None,
    description="criticality",
):
    """Measures criticality on paths that lead to one end point.

    With theta_a the module's weights at position a of a path, theta_0 and
    theta_1 at its ends, and all other modules at the end point, criticality is

        mu = min ||theta_a - theta_0||^2 / sigma^2
             over 0 <= a <= 1, 0 < sigma <= 1 with
             E_u error(theta_a + u) <= epsilon,   u ~ N(0, sigma^2)

    on every trainable coordinate of the module; the distance is over frozen
    weights too, which may differ. On the direct line the
    numerator is the definition's a^2 ||theta_1 - theta_0||^2. A path of n
    stored checkpoints is a polyline, a (n - 1) the position on it: of 4 that
    is, a = 0.5 lies half way between the second and the third.

    The minimum is taken over a grid, all positions by all sigmas, and the
    expectation over the same draws of noise, scaled, at all points. Where the
    first two errors are more than all draws may have in sum, there are no more
    draws: no error is negative, so that the mean cannot meet epsilon. Each
    refinement adds, around the minimum, the points half way to the neighbouring
    positions and, geometrically, sigmas (beyond the smallest or largest sigma,
    the step that leads to it once more; from a = 1 and the smallest sigma, if
    no point meets epsilon). Of many points that nearly do, some do by luck. So
    the minimum is evaluated once more, on as many fresh draws, and if it does
    not meet epsilon there, the next best takes its place. As on any grid, mu is
    too large rather than too small. Each position is evaluated without noise,
    too. Where that meets epsilon at a distance of 0, as at a = 0 if the module
    may be set back to its start without harm, mu is 0 by definition: some noise
    is borne, and be it little.

    Source: paper section 3.4; Chatterji et al. 2020, definition 3.

    Args:
        module_loss: `ModuleLoss` with the mean "error".
        paths: {name: sequence of weight vectors}, each a list of arrays, as
            `model.get_weights()` gives them; all end in the same vector, the
            end point. What is not needed is not asked for.
        levels: of "block" and "group", see `module_loss.parts`.
        positions: floats, ascending from 0 to 1.
        sigmas: floats in (0, 1], ascending.
        num_draws: int, draws of noise, at least 2, and so many fresh ones.
        refinements: int, how often the grid is refined.
        margin: float; epsilon is the end point's own error and this much more.
        seed: int, of the noise.
        evaluations: see `ModuleLoss.evaluate`.
        description: str, beside the progress bar.

    Returns:
        Two `pandas.DataFrame`s. By path, level and module (path, level, module,
        depth, parameters: how many), with the module "total" last: mu; low and
        high, mu if the mean error of every point with all draws were two
        standard errors lower or higher (high is NaN if none then meets
        epsilon); status,
        "finite", "infeasible" (no point of the grid meets epsilon) or
        "unbounded" (the minimum lies at the smallest sigma or at the largest
        one, unless that is 1 or mu is 0; the grid does not bound it), and mu is
        a number only if "finite"; at_most, the grid's minimum whatever the
        status; a, sigma and distance (||theta_a - theta_0||) where it lies;
        fresh_error and fresh_standard_error there, on the fresh draws (NaN
        without noise, which needs none); turned_down, how many points were
        smaller and failed on them; epsilon. And by grid point of these (path,
        level, module, depth, refinement: 0 for the given grid): a, sigma,
        distance, error (mean over draws), standard_error, draws; fresh_error,
        fresh_standard_error (NaN where there are no fresh draws); and epsilon.

    Raises:
        UserError: if an argument cannot be used.
    """
    named = {level: parts(module_loss.chain, level) for level in levels}
    every_part = {part for own in named.values() for part in own.values()}
    start = list(itertools.product(positions, [0.0, *sigmas]))
    wanted = {key: start for key in itertools.product(paths, every_part)}
    grids = {key: pandas.DataFrame() for key in wanted}
    seeds = noise_seeds(seed, 2 * num_draws)

    def draw(wanted, seeds):
        return _draw(
            module_loss, paths, wanted, seeds, evaluations, description
        )

    for refinement in range(refinements + 1):
        drawn = draw(wanted, seeds[:_FIRST_DRAWS])
        if not refinement:
            _, (end_error,) = next(iter(drawn.values()))[1.0, 0.0]
            epsilon = float(end_error) + margin
        _draw_more(
            drawn,
            num_draws * (epsilon + _ROUNDING),
            lambda wanted: draw(wanted, seeds[_FIRST_DRAWS:num_draws]),
        )
        for key, points in drawn.items():
            rows = _rows(points).assign(refinement=refinement)
            grids[key] = pandas.concat([grids[key], rows], ignore_index=True)
        wanted = {key: _refined(grid, epsilon) for key, grid in grids.items()}
    minima = _confirmed(
        grids, epsilon, lambda wanted: draw(wanted, seeds[num_draws:])
    )
    end = _end_point(paths)
    sizes = {
        part: len(module_loss.parameters(part, end)) for part in every_part
    }
    return _tables(named, paths, minima, grids, sizes)


def _draw_more(drawn, most, draw):
    """Adds further draws where the sum of errors may yet stay within bounds.

    Args:
        drawn: what `_draw` has returned of the first draws, changed in place.
        most: float, the largest sum of errors of all draws.
        draw: function of {key: points (a, sigma)} that makes the other draws.
    """
    wanted = {
        key: [
            (a, sigma)
            for (a, sigma), (_, errors) in points.items()
            if sigma and errors.sum() <= most
        ]
        for key, points in drawn.items()
    }
    for key, points in draw(wanted).items():
        for point, (distance, errors) in points.items():
            _, first = drawn[key][point]
            drawn[key][point] = distance, np.concatenate([first, errors])


def _confirmed(grids, epsilon, draw):
    """Finds the minimum of each grid that holds on fresh draws.

    Args:
        grids: {key: `pandas.DataFrame`}, as `_rows` returns them; what is
            drawn afresh is noted in them.
        epsilon: float, the largest error allowed.
        draw: function of {key: points (a, sigma)} that makes fresh draws, as
            `_draw` does.

    Returns:
        {key: dict, as `smallest` returns it}.
    """
    minima, open_keys = {}, list(grids)
    while open_keys:
        minima |= {key: smallest(grids[key], epsilon) for key in open_keys}
        # Without noise there is nothing to draw.
        open_keys = [
            key
            for key in open_keys
            if minima[key]["sigma"] > 0 and np.isnan(minima[key]["fresh_error"])
        ]
        wanted = {
            key: [(minima[key]["a"], minima[key]["sigma"])] for key in open_keys
        }
        for key, points in draw(wanted).items():
            grid, (a, sigma) = grids[key], wanted[key][0]
            here = (grid.a == a) & (grid.sigma == sigma)
            drawn = _rows(points)[["error", "standard_error"]].to_numpy()
            grid.loc[here, list(_FRESH_COLUMNS)] = drawn
    return minima


def smallest(grid, epsilon):
    """Returns the smallest ||theta_a - theta_0||^2 / sigma^2 of a grid.

    Args:
        grid: `pandas.DataFrame` with columns sigma, a, distance, error,
            standard_error, draws, fresh_error and fresh_standard_error, the
            last two NaN where nothing was drawn afresh; one row per point.
            Those without noise count only at a distance of 0.
        epsilon: float, the largest error allowed.

    Returns:
        dict: mu, low, high, status, at_most, a, sigma, distance, fresh_error,
        fresh_standard_error, turned_down and epsilon, as `module_criticality`
        describes them.
    """
    allowed = epsilon + _ROUNDING
    noisy = grid[grid.sigma > 0]
    failed = noisy.fresh_error > allowed
    still = grid[(grid.sigma == 0) & (grid.distance == 0)]
    still = still[still.error <= allowed]
    where = ["a", "sigma", "distance", *_FRESH_COLUMNS]
    found = {
        "status": "infeasible",
        "turned_down": int(np.sum(failed & (noisy.error <= allowed))),
        "epsilon": epsilon,
    }
    if len(still):
        zero = dict.fromkeys(("mu", "low", "high", "at_most"), 0.0)
        place = still[where].iloc[0].to_dict()
        return found | zero | {"status": "finite"} | place
    ratio = np.square(noisy.distance / noisy.sigma)
    twice = 2 * noisy.standard_error
    in_full = noisy.draws == noisy.draws.max()
    feasible = noisy[(noisy.error <= allowed) & ~failed]
    values = {
        "mu": ratio[feasible.index].min(),
        "low": ratio[in_full & (noisy.error - twice <= allowed)].min(),
        "high": ratio[(noisy.error + twice <= allowed) & ~failed].min(),
    }
    place = dict.fromkeys(where, np.nan)
    if len(feasible):
        # Of equals, the one that bears most noise.
        order = feasible.assign(ratio=ratio).sort_values(
            ["ratio", "sigma"], ascending=[True, False]
        )
        place = order[where].iloc[0].to_dict()
        edges = {noisy.sigma.min(), noisy.sigma.max()} - {1.0}
        on_edge = place["sigma"] in edges and values["mu"] > 0
        found["status"] = "unbounded" if on_edge else "finite"
    at_most = float(values["mu"])
    if found["status"] != "finite":
        values = dict.fromkeys(values, np.nan)
    return values | {"at_most": at_most} | found | place


def _by_depth(table, kind, statistic, without):
    """Returns a statistic of the modules' criticality, in order of depth.

    What is ranked is the mean, over the models of a kind, of the ranks of their
    modules: so each model counts the same, and infinity can be borne.

    Args:
        table: what `criticality` returns.
        kind: of model.
        statistic: function of float [modules], in order of depth.
        without: float, what it is if all modules are equal.
    """
    modules = _direct_to_final(table, kind)
    ranks = modules.groupby("depth")["rank"].mean().sort_index()
    if len(ranks) < 3:
        raise UserError(
            "A trend over depth needs three or more modules. Received: "
            f"{', '.join(dict.fromkeys(modules.module))}."
        )
    if ranks.nunique() == 1:
        return Value(without, "All modules are equally critical.")
    return Value(float(statistic(ranks.to_numpy())), _bounds(modules))


def path_agreement(table):
    """Returns how alike the four paths of each model find its modules.

    Args:
        table: what `criticality` returns.

    Returns:
        `pandas.DataFrame`, one row per model: kind, name, paths (how many of
        the four differ: if the best epoch is the last, two), agreement: the
        least, over their pairs, of Spearman's rank correlation of the modules'
        (blocks') criticality, in [-1, 1]. Infeasible modules count as more
        critical than any number, unbounded ones as their upper bound `at_most`.
        A path on which all are equally critical has no pattern and agrees with
        none: 0. NaN if there is but one path.
    """
    modules = _ranked(table)
    rows = []
    for (kind, name), own in modules.groupby(["kind", "name"], sort=False):
        ranks = own.drop_duplicates(["path", "epoch", "module"]).pivot(
            index="module", columns=["path", "epoch"], values="rank"
        )
        above = np.triu_indices(ranks.shape[1], 1)
        pairs = ranks.corr().fillna(0.0).to_numpy()[above]
        agreement = min(pairs.tolist(), default=np.nan)
        rows.append((kind, name, ranks.shape[1], agreement))
    return pandas.DataFrame(
        rows, columns=["kind", "name", "paths", "agreement"]
    )


def _least_agreement(table, kind):
    """Returns the statistic of claim C9: the mean over models of a kind."""
    own = _of_kind(table, kind)
    agreement = path_agreement(own).agreement
    if agreement.isna().any():
        raise UserError(
            f"The paths of a {kind} are one and the same. Received: no "
            "checkpoint between its first and its last; keep some."
        )
    return Value(float(agreement.mean()), _bounds(_ranked(own)))


def _heads(table):
    """Returns how critical the last module of each P-T is.

    Returns:
        `pandas.DataFrame`, one row per model: ratio, of its mu to the median of
        the other modules', and rank, 1 for the most critical of all. The ratio
        is infinite for an infeasible head, 0 for one that may be set back to
        its start without harm, and NaN if most others, too, are infeasible.
    """
    rows = []
    for _, own in _direct_to_final(table, "P-T").groupby("name", sort=False):
        last = own.depth.idxmax()
        head, others = own.mu_or_infinity[last], own.drop(last)
        median = others.mu_or_infinity.median()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.divide(head, median) if head else 0.0
        rows.append((ratio, len(own) + 1 - own["rank"][last]))
    return pandas.DataFrame(rows, columns=["ratio", "rank"])


def _head_over_median(table):
    """Returns the statistic of claim C10: the geometric mean over P-Ts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.exp(np.log(_heads(table).ratio).mean(skipna=False))
    if np.isnan(value):
        raise UserError(
            "The head's criticality over the median module's is infinity over "
            "infinity, or infinite for one P-T and 0 for another. Received: "
            "modules that are infeasible; bind smaller criticality.sigmas."
        )
    return Value(float(value), _bounds(_direct_to_final(table, "P-T")))


def _ranked(table):
    """Returns the rows of blocks, with their rank by criticality.

    Beside rank, 1 for the least critical, mu_or_infinity is what is ranked:
    infinite for the infeasible, the upper bound for the unbounded.
    """
    blocks = table[(table.level == "block") & (table.module != TOTAL)]
    infeasible = blocks.status == "infeasible"
    order = blocks.at_most.where(~infeasible, np.inf)
    rank = order.groupby([blocks[c] for c in _CASE], sort=False).rank()
    return blocks.assign(rank=rank, mu_or_infinity=order)


def _of_kind(table, kind):
    own = table[(table.kind == kind) & (table.level == "block")]
    if not len(own):
        raise UserError(
            f"Criticality of modules of {kind}s is asked for. Received: "
            f"{', '.join(dict.fromkeys(table.kind + ', ' + table.level))}."
        )
    return own


def _direct_to_final(table, kind):
    """Returns the ranked rows of the direct path to the final weights."""
    own = _ranked(_of_kind(table, kind))
    return own[(own.path == "direct") & (own.end_point == "final")]


def _bounds(modules):
    """Returns what is to be said of modules whose mu is not known."""
    counts = modules.status.value_counts()
    words = {
        "unbounded": "enter with an upper bound",
        "infeasible": "as infinitely critical",
    }
    told = [
        f"{counts[status]} {text}"
        for status, text in words.items()
        if status in counts
    ]
    return f"Of {len(modules)} modules, {', '.join(told)}." if told else ""


def _check_grid(positions, sigmas):
    positions, sigmas = np.asarray(positions), np.asarray(sigmas)
    if (
        len(positions) < 2
        or (positions[0], positions[-1]) != (0, 1)
        or np.any(np.diff(positions) <= 0)
    ):
        raise UserError(
            "Positions on a path ascend from 0 to 1. Received: "
            f"positions={tuple(positions.tolist())}."
        )
    if (
        len(sigmas) < 2
        or np.any(np.diff(sigmas) <= 0)
        or not (sigmas[0] > 0 and sigmas[-1] <= 1)
    ):
        raise UserError(
            "The noise levels are two or more, ascend, and lie above 0 and at "
            f"most at 1. Received: sigmas={tuple(sigmas.tolist())}."
        )


def _draw(module_loss, paths, wanted, seeds, evaluations, description):
    """Evaluates grid points with several draws of noise.

    Args:
        module_loss: `ModuleLoss`.
        paths: {name: sequence of weight vectors}.
        wanted: {(path, part): list of (a, sigma)}.
        seeds: int [R], of the draws.
        evaluations: None or `Evaluations`.
        description: str.

    Returns:
        {(path, part): {(a, sigma): (distance, errors float64 [R], of one draw
        if sigma is 0)}}, without those that want nothing.
    """
    wanted = {key: points for key, points in wanted.items() if points}
    if not wanted or not len(seeds):
        return {}
    vectors, places = _corners(paths, wanted)
    distances = {}
    requests = {}
    for (path, part), points in wanted.items():
        on_path = places[path]
        distances[path, part] = _distances(
            module_loss,
            part,
            vectors,
            {on_path[a] for a, _ in points},
            on_path[0],
        )
        requests.setdefault(part, []).extend(
            (on_path[a], sigma, seed)
            for a, sigma in points
            # Without noise, one draw is as good as many.
            for seed in (seeds if sigma else seeds[:1])
        )
    found = module_loss.evaluate(
        vectors,
        0,
        {
            part: Perturbations(*map(np.array, zip(*rows, strict=True)))
            for part, rows in requests.items()
        },
        evaluations,
        description,
    )
    values = {part: iter(columns["error"]) for part, columns in found.items()}
    return {
        (path, part): {
            (a, sigma): (
                distances[path, part][places[path][a]],
                np.fromiter(
                    values[part], np.float64, len(seeds) if sigma else 1
                ),
            )
            for a, sigma in points
        }
        for (path, part), points in wanted.items()
    }


def _rows(points):
    """Returns what `_draw` found of one part on one path as a table."""
    rows = []
    for (a, sigma), (distance, errors) in points.items():
        count = len(errors)
        deviation = np.std(errors, ddof=1) if sigma else 0.0
        error = errors.mean(), deviation / np.sqrt(count)
        rows.append((a, sigma, distance, *error, count))
    nothing = dict.fromkeys(_FRESH_COLUMNS, np.nan)
    return pandas.DataFrame(rows, columns=_GRID_COLUMNS).assign(**nothing)


def _corners(paths, wanted):
    """Collects the stored vectors between which the wanted points lie.

    Returns:
        vectors: the end point, then each path's corners in turn.
        places: {path: {a: position among the vectors}}, 0 always included.
    """
    vectors, places = [_end_point(paths)], {}
    for path in dict.fromkeys(path for path, _ in wanted):
        own = {a for (p, _), ps in wanted.items() if p == path for a, _ in ps}
        # A corner, and not a point 1e-16 beside it.
        on_path = {a: round(a * (len(paths[path]) - 1), 9) for a in {0.0, *own}}
        needed = sorted(
            {math.floor(t) for t in on_path.values()}
            | {math.ceil(t) for t in on_path.values()}
        )
        offset = len(vectors)
        vectors += [paths[path][k] for k in needed]
        # Both ends of every stretch are there, so they are neighbours.
        places[path] = {
            a: offset + needed.index(int(t)) + t % 1 for a, t in on_path.items()
        }
    return vectors, places


def _end_point(paths):
    """Returns the weight vector in which all paths end."""
    some = next(iter(paths.values()))
    return some[len(some) - 1]


def _distances(module_loss, part, vectors, places, origin):
    """Returns {place: L2 distance of a part's weights from the origin}."""

    def weights(place):
        k, f = int(place), place % 1
        found = module_loss.parameters(part, vectors[k]).astype(np.float64)
        if f:
            other = module_loss.parameters(part, vectors[k + 1])
            found = (1 - f) * found + f * other
        return found

    start = weights(origin)
    return {
        place: float(np.linalg.norm(weights(place) - start)) for place in places
    }


def _refined(grid, epsilon):
    """Returns the points (a, sigma) that refine a grid around its minimum."""
    noisy = grid[grid.sigma > 0]
    best = smallest(grid, epsilon)
    if best["at_most"] == 0:
        return []
    if best["status"] == "infeasible":
        best |= {"a": 1.0, "sigma": noisy.sigma.min()}
    positions = np.unique(grid.a)
    i = np.searchsorted(positions, best["a"])
    # At an end, the neighbour is the point itself.
    near = positions[[max(i - 1, 0), i, min(i + 1, len(positions) - 1)]]
    logs = np.log(np.unique(noisy.sigma))
    j = np.searchsorted(logs, np.log(best["sigma"]))
    below = logs[j - 1] if j > 0 else 3 * logs[0] - 2 * logs[1]
    above = logs[j + 1] if j + 1 < len(logs) else 3 * logs[-1] - 2 * logs[-2]
    sigmas = np.exp((logs[j] + np.array([below, logs[j], above])) / 2)
    known = set(zip(grid.a, grid.sigma, strict=True))
    sigmas[1] = best["sigma"]
    return [
        (a, sigma)
        for a in dict.fromkeys(((best["a"] + near) / 2).tolist())
        for sigma in dict.fromkeys(np.minimum(sigmas, 1.0).tolist())
        if (a, sigma) not in known
    ]


def _tables(named, paths, minima, grids, sizes):
    """Returns the two tables of `module_criticality`."""
    table, grid = [], []
    measured = (*_GRID_COLUMNS, *_FRESH_COLUMNS)
    for path, (level, own) in itertools.product(paths, named.items()):
        rows = []
        for depth, (module, part) in enumerate(own.items()):
            labels = {"path": path, "level": level}
            labels |= {"module": module, "depth": float(depth)}
            size = {"parameters": sizes[part]}
            rows.append(labels | size | minima[path, part])
            # Labels first.
            grid.append(
                grids[path, part].assign(
                    **labels, epsilon=minima[path, part]["epsilon"]
                )[[*labels, "refinement", *measured, "epsilon"]]
            )
        table += [*rows, _total(rows)]
    return pandas.DataFrame(table), pandas.concat(grid, ignore_index=True)


def _total(rows):
    """Returns the network's row: the sum over modules."""
    statuses = [row["status"] for row in rows]
    worst = [s for s in ("infeasible", "unbounded") if s in statuses]
    sums = {
        column: sum(row[column] for row in rows)
        for column in (
            *("mu", "low", "high", "at_most"),
            *("parameters", "turned_down"),
        )
    }
    nowhere = ("a", "sigma", "distance", *_FRESH_COLUMNS)
    return (
        rows[0]
        | {"module": TOTAL, "depth": np.nan}
        | dict.fromkeys(nowhere, np.nan)
        | sums
        | {"status": (worst or ["finite"])[0]}
    )


def _first_module_figure(grid):
    grid = _shown(grid)
    module, epsilon = grid.module.iloc[0], grid.epsilon.mean()
    grid = grid[grid.module == module]
    kinds = list(dict.fromkeys(grid.kind))
    columns = list(itertools.product(kinds, END_POINTS))
    figure, axes = new_figure(
        2.4 * len(columns) + 1,
        5.2,
        2,
        len(columns),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row, path in zip(axes, PATHS, strict=True):
        for panel, (kind, end_point) in zip(row, columns, strict=True):
            rows = grid[(grid.kind == kind) & (grid.path == path)]
            rows = rows[rows.end_point == end_point]
            image = _heat_map(panel, rows, epsilon)
            panel.set_title(f"{kind}: {path}, {end_point}", fontsize="small")
    return _finish_heat_maps(
        figure, axes, image, f"Criticality of {module}", epsilon
    )


def _module_figure(grid, path, end_point):
    grid = _shown(grid)
    epsilon = grid.epsilon.mean()
    grid = grid[(grid.path == path) & (grid.end_point == end_point)]
    kinds = list(dict.fromkeys(grid.kind))
    modules = list(dict.fromkeys(grid.module))
    figure, axes = new_figure(
        1.9 * len(modules) + 1,
        2.3 * len(kinds) + 0.6,
        len(kinds),
        len(modules),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row, kind in zip(axes, kinds, strict=True):
        for panel, module in zip(row, modules, strict=True):
            rows = grid[(grid.kind == kind) & (grid.module == module)]
            image = _heat_map(panel, rows, epsilon)
            panel.set_title(f"{kind}: {module}", fontsize="small")
    return _finish_heat_maps(
        figure,
        axes,
        image,
        f"Criticality, {path} path, {end_point} end point",
        epsilon,
    )


def _shown(grid):
    """Returns what heat maps show: the given grid, of the first level."""
    grid = grid[(grid.level == grid.level.iloc[0]) & (grid.refinement == 0)]
    return grid[grid.sigma > 0]


def _heat_map(axes, grid, epsilon):
    """Draws the mean error over models: position against noise level."""
    error = grid.pivot_table("error", "a", "sigma")
    image = axes.pcolormesh(
        error.columns,
        error.index,
        error,
        vmin=0,
        vmax=1,
        cmap="cividis",
        shading="nearest",
        edgecolors="face",  # Or viewers of SVG let the ground show through.
    )
    axes.set_xscale("log")
    axes.minorticks_off()  # Many to draw in every panel, and none is read.
    if error.min(axis=None) < epsilon < error.max(axis=None):
        axes.contour(
            error.columns,
            error.index,
            error,
            levels=[epsilon],
            colors="white",
            linewidths=1.2,
        )
    return image


def _finish_heat_maps(figure, axes, image, title, epsilon):
    for panel in axes[-1]:
        panel.set_xlabel("sigma")
    for row in axes:
        row[0].set_ylabel("position a")
    figure.colorbar(image, ax=axes, label="mean training error")
    figure.suptitle(f"{title} (white: mean epsilon, {epsilon:.3g})")
    return figure


def _bar_figure(table):
    """Draws criticality against depth, kinds side by side."""
    table = table[
        (table.level == table.level.iloc[0]) & (table.module != TOTAL)
    ]
    positive = table.at_most[table.at_most > 0]
    low, high = (
        (positive.min() / 10, positive.max() * 10)
        if len(positive)
        else (0.1, 10.0)
    )
    # What is infeasible has no bound.
    table = table.assign(height=table.at_most.fillna(high).clip(lower=low))
    kinds, modules = (
        list(dict.fromkeys(table[column])) for column in ("kind", "module")
    )
    figure, axes = new_figure(
        max(6.4, 2 + len(modules)), 6.4, 2, 2, sharex=True, sharey=True
    )
    for row, path in zip(axes, PATHS, strict=True):
        for panel, end_point in zip(row, END_POINTS, strict=True):
            own = table[(table.path == path) & (table.end_point == end_point)]
            _bars(panel, own, kinds, modules)
            panel.set(title=f"{path}, {end_point}", yscale="log")
            panel.set_ylim(low / 2, high * 2)
            panel.axhline(low, color="0.6", lw=0.8, ls=":")
            panel.axhline(high, color="0.6", lw=0.8, ls=":")
        row[0].set_ylabel("criticality")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(
        "Criticality by depth: median and every model\n(dotted: 0, below, and "
        "infeasible, above; hollow: an upper bound)",
        fontsize="medium",
    )
    return figure


def _bars(axes, table, kinds, modules):
    width = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        own = table[table.kind == kind]
        x = np.arange(len(modules)) + (i - (len(kinds) - 1) / 2) * width
        medians = own.groupby("module", sort=False).height.median()
        axes.bar(
            x,
            medians[modules],
            width,
            color=colour(kind),
            alpha=0.5,
            label=kind,
        )
        for bounded in (True, False):
            dots = own[(own.status != "unbounded") == bounded]
            axes.plot(
                x[dots.depth.astype(int)],
                dots.height,
                "o",
                color=colour(kind),
                markerfacecolor=colour(kind) if bounded else "white",
                markersize=3,
            )
    axes.set_xticks(range(len(modules)), modules, rotation=90)
