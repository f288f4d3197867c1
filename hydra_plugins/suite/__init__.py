"""The suite's sweeper and launchers. Hydra finds plugins by their folder's name."""
