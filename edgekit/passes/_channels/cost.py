"""Multiplications of a program: the one count that all of edgekit goes by."""

from __future__ import annotations

from edgekit.core.cost import macs_of

__all__ = ["macs_of"]
