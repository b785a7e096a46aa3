"""Distribution matching: DMD2, f-distill and score identity distillation (SiD)."""
