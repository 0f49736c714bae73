"""Bytes at rest: the formats on disk, and how they get there whole."""
