"""The machine that this process runs on: its name, memory, threads, heap, and the cache folder.

Begin with `describe`. `speeds` remembers how fast a device multiplies, `memory` holds every reader of memory in /proc
and cgroups, `heap` keeps the process's heap below a ceiling, and `threads` says how OpenMP waits.
"""
