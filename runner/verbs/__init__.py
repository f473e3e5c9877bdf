"""One package or module for each verb: `run`, `plan`, `verify`, `merge`, `export`, `doctor`, `extract`.

A verb knows nothing of another one. `gallery`, `bench` and `web` have packages of their own.
"""
