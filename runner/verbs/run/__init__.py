"""The verb `run`: renders what a run folder lacks.

Begin with `run`. `session` is one run under way, `backlog` what is still to be made, and `turns` loads one model at a
time.
"""
