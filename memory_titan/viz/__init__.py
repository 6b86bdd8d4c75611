"""Figures and reports, drawn from plain numbers and text."""
