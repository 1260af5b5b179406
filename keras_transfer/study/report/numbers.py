"""Numbers as people read them: three digits, and what they are of."""

import math

# Units of shares, which are shown a hundredfold.
_HUNDREDFOLD = {"points": " points", "%": "%"}


def number(value):
    """Returns a number with three digits, a dash for NaN, other things as is.

    Numbers of a thousand and more, and integers, keep all before the point.
    """
    import pandas

    if value is None or pandas.isna(value):
        return "–"
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3g}"


def scaled(value, unit):
    """Returns a value as it is shown: shares a hundredfold."""
    return 100 * value if unit in _HUNDREDFOLD else value


def amount(value, unit):
    """Returns a value with its unit, such as "1.3 points" or "40%".

    Args:
        value: float.
        unit: str, see `Statistic`.
    """
    return f"{_figure(value, unit)}{_suffix(value, unit)}"


def extent(low, high, unit):
    """Returns from where to where, "" if an end is not known.

    Args:
        low: float.
        high: float.
        unit: str, see `Statistic`.
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    ends = f"{_figure(low, unit)} to {_figure(high, unit)}"
    return f"{ends}{_suffix(high, unit)}"


def _figure(value, unit):
    if unit not in _HUNDREDFOLD or not math.isfinite(value):
        return number(value)
    shown = scaled(value, unit)
    if unit == "%" or math.isclose(shown, round(shown), abs_tol=1e-9):
        return f"{shown:.0f}"
    # Not "-0.0".
    return f"{round(shown, 1) + 0.0:.1f}"


def _suffix(value, unit):
    if not unit or math.isnan(value):
        return ""
    if unit == "points" and _figure(value, unit) == "1":
        return " point"
    return _HUNDREDFOLD.get(unit, f" {unit}")
