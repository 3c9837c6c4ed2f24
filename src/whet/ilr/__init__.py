"""Refining demonstrations: cross-labelling, comparison feedback and replacement, in rounds."""
