"""Slots: read and written by content, the stalest forgotten first."""
