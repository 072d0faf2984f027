"""Techniques that share the work of one model among processes."""
