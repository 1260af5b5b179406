"""Reading gin configurations, and what their parameters may be bound to."""

from keras_transfer.config.parsing import parse, without_calls

__all__ = ["parse", "without_calls"]
