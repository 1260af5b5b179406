"""Analyses of trained models (paper section 3 and appendix), a file each.

Everything of use outside is exported by `keras_transfer` itself.
"""
