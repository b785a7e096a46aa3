"""Commands that make files of files, or tell what they are: pack, convert, info, ema, export, plan."""

from __future__ import annotations
