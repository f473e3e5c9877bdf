"""The verb `verify`: renders recorded pictures again and compares.

Begin with `verify`. `judge` compares record, file and rendering.
"""
