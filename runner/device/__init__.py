"""Where weights are: on the device, parked, or on their way through it.

Begin with `component`. `parking` is where weights wait, `packed_file` keeps them as a CPU multiplies by them, `lanes`
says on which threads calls are made, and `memory` is torch's view of a device's memory.
"""
