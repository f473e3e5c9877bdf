"""The verb `plan`: what a run would do, without doing it.

Begin with `survey`. `forecast` estimates time and disk from records, `lint` finds likely mistakes, and `text` prints.
"""
