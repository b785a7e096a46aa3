"""Tests on a real Slurm; a package, so that its modules can be named after what they test without clashes."""
