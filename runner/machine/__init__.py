"""The machine that this process runs on: its name, memory, threads, heap, and the cache folder.

Begin with `describe`. `memory` holds every reader of /proc and of cgroups, `heap` keeps the process's heap below a
ceiling, and `threads` says how OpenMP waits.
"""
