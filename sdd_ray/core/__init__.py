"""Numerics of the method: arrays in, arrays out; no Ray, no files, no clock, no global state."""
