"""Tests on a real Slurm; a package, so that its files may be called what they test."""
