"""Copies of what patients have connected, brought up to date in the background."""
