"""The engines: the loss at many points of parameter space."""
