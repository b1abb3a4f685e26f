"""Bytes: frames and bodies, as FORMAT.md states them."""
