"""Multistep consistency distillation."""
