"""Makes the pictures of a wave: a wave in, events out. Knows neither manifest nor run folder.

Begin with `executor`: one model on one device. A wave goes through `text`, `denoise` (with `samplers`) and
`autoencoder` (with `strips`). `inductor` and `openvino` compile the UNet, `start` makes an executor ready, and `stops`
ends a run between waves.
"""
