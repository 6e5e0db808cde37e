"""Readers of what users hold, one file each."""
