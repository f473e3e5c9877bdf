"""The run folder: the ledger of its records, its file names, and the threads that write pictures.

Begin with `ledger`. `store` says what every place of run folders can do: `local` is one on a disk; `objects` is one in
an object store, with `segments`, `lease`, `bucket` and `clouds` below it. `ways` compares how pictures were made,
`names` makes file names, `writer` writes files, and `schema` makes the JSON schema of a record.
"""
