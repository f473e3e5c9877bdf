"""The verb `bench`: this runner against stock diffusers, on this machine.

Begin with `bench`. `worker` is the process of one contender, `report` writes the results, and `random_model` makes a
model of full size.
"""
