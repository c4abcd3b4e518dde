"""Duologue: a self-hosted server for real-time conversations with AI."""

__version__ = "0.1.0"
