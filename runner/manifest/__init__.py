"""From the text of a manifest to items: read, checked, expanded.

Begin with `read` (a manifest's structure) and `items` (from a checked manifest to items). `rules` says what each item
key may be, `nodes` reads YAML with places, `weighted` reads weighted prompts, `grid` combines axes, `lines` reads JSON
lines, `write` writes a manifest again, and `schema` makes the JSON schema.
"""
