"""Paths and URIs, atomic publishing, weights and run manifests."""
