"""Faces drawn by the program, with known degradations: data for the demo and the tests."""
