"""Commands that compute with networks and detectors: generate, reference, score."""

from __future__ import annotations
