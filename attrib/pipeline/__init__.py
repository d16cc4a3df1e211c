"""Analyses from options to results: what `attrib.run` and the command line both call."""
