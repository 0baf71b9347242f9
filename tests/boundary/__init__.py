"""Requests at the boundary of one patient's record: attacks and legitimate uses."""
