"""Prompts as AUTOMATIC1111's web UI (version 1.10) reads them: tags, then prompt editing, then emphasis.

Begin with `check.py`, which finds what is wrong before anything is loaded; what it lets pass raises nothing elsewhere.
"""
