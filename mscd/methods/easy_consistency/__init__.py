"""Easy consistency tuning."""
