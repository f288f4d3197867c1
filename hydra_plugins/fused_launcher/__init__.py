"""Hydra launcher that gives whole groups of a multirun's jobs to one function. Found by Hydra by its folder's name."""

from hydra_plugins.fused_launcher.launcher import FusedLauncher as FusedLauncher
