"""Decides how items will be made, before anything is loaded. Never imports torch.

Begin with `layouts`: which components stay, visit or walk, and how many rows a call has. `costs` is the formula of
memory, `choices` says what `auto` means, and `waves` groups items.
"""
