"""A model's files: where they are, what is in them, and which weights they hold. Only `modules` imports torch.

Begin with `files` (a model that was found) and `find` (which model is meant). `safetensors`, `torch_file` with
`pickled`, and `single_file` read each form of weights as a table of byte ranges. `fingerprints` names weights by their
content, `tokens` reads the tokenizer, and `modules` builds diffusers' modules and reads tensors.
"""
