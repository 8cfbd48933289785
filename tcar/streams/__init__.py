"""Frozen backbones behind one interface, and their published weights."""
