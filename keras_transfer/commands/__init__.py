"""The commands, one a module.

Its docstring is the text of `--help`, in which bin/NAME stands for the command
however it is called. `define_flags` defines the flags, whose values `main` gets
by their names.
"""
