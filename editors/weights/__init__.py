"""The weights that editors change: MLPs, vision modules, low-rank updates."""
