"""Scores of editors: metrics, protocols, tables, layer grids."""
