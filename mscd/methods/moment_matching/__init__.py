"""Moment matching, alternating between student and auxiliary denoiser."""
