"""Continuous-time consistency, by distillation or training, with one or several segments: the loss and a derivative."""
